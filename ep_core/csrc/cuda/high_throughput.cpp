#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "errors.hpp"
#include "high_throughput_face.hpp"

namespace ep_core::cuda {
namespace {

constexpr auto kPoll = std::chrono::microseconds(20);

}  // namespace

HighThroughput::HighThroughput(Segment& segment) : segment_(segment) {
  const DeviceGuard guard(segment.device());
  check(prepare_high_throughput(), "high-throughput kernels cannot have their shared memory");
}

std::int64_t HighThroughput::least_bytes(std::int64_t row_bytes, std::int64_t extra_bytes, int ranks) {
  return RingLayout::least_bytes(PlaceLayout(row_bytes + extra_bytes, 0, 0, 0).bytes + 128, ranks);
}

void HighThroughput::check_fits(const PlaceLayout& place) const {
  const World& world = segment_.world();
  const std::int64_t wanted = RingLayout::least_bytes(place.bytes, world.ranks);
  if (segment_.nvl_bytes() < wanted) {
    throw WrongArgument("num_nvl_bytes: at least " + std::to_string(wanted) + " are wanted for rows of " +
                        std::to_string(place.bytes) + " bytes on " + std::to_string(world.ranks) +
                        " ranks, the Buffer was made with " + std::to_string(segment_.nvl_bytes()));
  }
}

int HighThroughput::blocks(int wanted) const {
  const int all = segment_.multiprocessors();
  return wanted > 0 ? std::min(wanted, all) : all;
}

void HighThroughput::layout(const HtLayout& arguments, cudaStream_t stream) const {
  const DeviceGuard guard(segment_.device());
  check(launch_ht_layout(segment_.world(), arguments, stream), "get_dispatch_layout cannot be launched");
}

void HighThroughput::notify(HtNotify arguments, bool host_wanted, cudaStream_t stream) {
  const World& world = segment_.world();
  const DeviceGuard guard(segment_.device());
  if (host_wanted) {
    segment_.counts().epoch = 0;
    arguments.counts = segment_.counts_on_device();
    local_experts_ = arguments.experts / world.ranks;
  }
  check(launch_ht_notify(world, arguments, stream), "dispatch cannot be launched");
}

std::pair<std::int64_t, std::vector<std::int64_t>> HighThroughput::counts(double timeout_s) const {
  const volatile Counts& told = segment_.counts();
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t spins = 0; told.epoch == 0; ++spins) {
    if (segment_.failure().code != 0) throw std::runtime_error("dispatch: a kernel has failed");
    if (spins < 10000) continue;
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > timeout_s) {
      throw std::runtime_error("dispatch: the counts of the other ranks did not come, and no kernel says why");
    }
    std::this_thread::sleep_for(kPoll);
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  std::vector<std::int64_t> per_expert(static_cast<std::size_t>(local_experts_));
  for (std::size_t expert = 0; expert < per_expert.size(); ++expert) per_expert[expert] = told.per_expert[expert];
  return {told.received, std::move(per_expert)};
}

void HighThroughput::dispatch(const HtDispatch& arguments, int multiprocessors, cudaStream_t stream) const {
  const DeviceGuard guard(segment_.device());
  check_fits(arguments.place());
  check(launch_ht_dispatch(segment_.world(), arguments, segment_.nvl_bytes(), blocks(multiprocessors), stream),
        "dispatch cannot be launched");
}

void HighThroughput::combine(const HtCombine& arguments, int multiprocessors, cudaStream_t stream) const {
  const DeviceGuard guard(segment_.device());
  check_fits(arguments.place());
  check(launch_ht_combine(segment_.world(), arguments, segment_.nvl_bytes(), blocks(multiprocessors), stream),
        "combine cannot be launched");
}

}  // namespace ep_core::cuda
