#include <algorithm>
#include <string>

#include "errors.hpp"
#include "low_latency_face.hpp"

namespace ep_core::cuda {
namespace {

// FNV-1a of what all ranks must give alike; never 0.
class Signature {
 public:
  Signature& of(std::int64_t value) {
    for (int byte = 0; byte < 8; ++byte) {
      hash_ = (hash_ ^ static_cast<std::uint8_t>(value >> (8 * byte))) * 0x01000193u;
    }
    return *this;
  }
  std::uint32_t value() const { return hash_ | 1u; }

 private:
  std::uint32_t hash_ = 0x811c9dc5u;
};

std::uint32_t signature_of(Phase phase, const LowLatencySizes& sizes, int topk, std::int64_t options) {
  return Signature()
      .of(static_cast<std::int64_t>(phase))
      .of(sizes.max_tokens)
      .of(sizes.hidden)
      .of(sizes.experts)
      .of(topk)
      .of(options)
      .value();
}

}  // namespace

LowLatency::LowLatency(const Segment& segment) : segment_(segment) {
  const DeviceGuard guard(segment.device());
  check(prepare_dispatch(), "low_latency_dispatch cannot have its shared memory");
  check(prepare_combine(), "low_latency_combine cannot have its shared memory");
}

void LowLatency::prepare_ports() const {
  const DeviceGuard guard(segment_.device());
  check(prepare_ports_dispatch(), "low_latency_dispatch cannot have its shared memory");
  check(prepare_ports_combine(), "low_latency_combine cannot have its shared memory");
}

std::int64_t LowLatency::messages(const LowLatencySizes& sizes) const {
  const int slots = segment_.ports().slots;
  return slots == 0 ? 0 : messages_bytes(sizes, segment_.world().ranks, slots);
}

void LowLatency::check_fits(const LowLatencySizes& sizes) const {
  const World& world = segment_.world();
  if (sizes.experts > kMaxExperts || sizes.hidden > kMaxHidden || sizes.max_tokens >= kMostTokens) {
    throw WrongArgument("the CUDA engine takes at most " + std::to_string(kMaxExperts) + " experts, hidden " +
                        std::to_string(kMaxHidden) + " and " + std::to_string(kMostTokens - 1) +
                        " tokens on a rank, got num_experts=" + std::to_string(sizes.experts) +
                        ", hidden=" + std::to_string(sizes.hidden) +
                        ", num_max_dispatch_tokens_per_rank=" + std::to_string(sizes.max_tokens));
  }
  const PortsOfBuffer& ports = segment_.ports();
  if (ports.slots > 0 && message_slot_bytes(sizes, world.ranks) > ports.most_message_bytes) {
    throw WrongArgument("num_max_dispatch_tokens_per_rank: a message to another node may come to " +
                        std::to_string(message_slot_bytes(sizes, world.ranks)) + " bytes, and its transport carries " +
                        std::to_string(ports.most_message_bytes) + " at once: give fewer tokens, or another " +
                        "EP_PORT_TRANSPORT");
  }
  const std::int64_t wanted = LowLatencyLayout::least_bytes(sizes, world.ranks, messages(sizes));
  if (segment_.rdma_bytes() >= wanted) return;
  throw WrongArgument("num_rdma_bytes: " + std::to_string(wanted) +
                      " are wanted for num_max_dispatch_tokens_per_rank=" + std::to_string(sizes.max_tokens) +
                      ", hidden=" + std::to_string(sizes.hidden) + ", num_experts=" + std::to_string(sizes.experts) +
                      " on " + std::to_string(world.ranks) + " ranks (get_low_latency_rdma_size_hint" +
                      (ports.slots == 0 ? "" : ", with num_nodes") + "), the Buffer was made with " +
                      std::to_string(segment_.rdma_bytes()));
}

LowLatencyLayout LowLatency::layout(const LowLatencySizes& sizes) const {
  check_fits(sizes);
  return {sizes, segment_.world().ranks, segment_.rdma_bytes(), messages(sizes)};
}

int LowLatency::blocks(int wanted) const {
  const int all = segment_.multiprocessors();
  return wanted > 0 ? std::min(wanted, all) : all;
}

void LowLatency::dispatch(const LowLatencyCall& given, const DispatchInput& in, const DispatchOutput& out,
                          const Map& map, int multiprocessors, cudaStream_t stream) const {
  const LowLatencyLayout at = layout(given.sizes);
  const DeviceGuard guard(segment_.device());
  LowLatencyCall call = given;
  const std::int64_t options = in.fp8 + 2 * in.round_scale + 4 * (map.weights != nullptr);
  call.signature = signature_of(Phase::dispatch, call.sizes, call.topk, options);
  const PortsOfBuffer& ports = segment_.ports();
  const int grid = blocks(multiprocessors);
  check(ports.slots == 0 ? launch_dispatch(segment_.world(), at, call, in, out, map, grid, stream)
                         : launch_ports_dispatch(segment_.world(), at, call, in, out, map, ports, grid, stream),
        "low_latency_dispatch cannot be launched");
}

void LowLatency::combine(const LowLatencyCall& given, const CombineInput& in, const Map& map, void* out,
                         int multiprocessors, cudaStream_t stream) const {
  const LowLatencyLayout at = layout(given.sizes);
  const DeviceGuard guard(segment_.device());
  LowLatencyCall call = given;
  call.signature = signature_of(Phase::combine, call.sizes, call.topk, in.local_reduce);
  const PortsOfBuffer& ports = segment_.ports();
  const int grid = blocks(multiprocessors);
  check(ports.slots == 0 ? launch_combine(segment_.world(), at, call, in, map, out, grid, stream)
                         : launch_ports_combine(segment_.world(), at, call, in, map, out, ports, grid, stream),
        "low_latency_combine cannot be launched");
}

}  // namespace ep_core::cuda
