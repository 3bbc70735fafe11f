// The Python binding, ep_core._cuda. Torch-free: addresses and streams come as integers; ep_core/cuda.py has checked
// what they point to. Calls enqueue and return; those that wait give up the GIL.
#include <cuda_runtime.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "errors.hpp"
#include "high_throughput_face.hpp"
#include "low_latency_face.hpp"
#include "segment.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace ep_core::cuda {
namespace {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream_of(std::uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

// Why the engine cannot be used here; empty when it can.
std::string obstacle() {
  int devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (counted != cudaSuccess) return cudaGetErrorString(counted);
  if (devices == 0) return "there is no CUDA device";
  for (int device = 0; device < devices; ++device) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9)
      return "";
  }
  return "no device has compute capability 9.0 (H100) or newer";
}

// One buffer on one rank.
struct Cuda {
  Segment segment;
  LowLatency low_latency{segment};
  HighThroughput high_throughput{segment};

  Cuda(int rank, int ranks, std::int64_t nvl_bytes, std::int64_t rdma_bytes, double timeout_s, int device)
      : segment(rank, ranks, nvl_bytes, rdma_bytes, timeout_s, device) {}
};

// What kernels told of a failure: phase, code (see `Failure`), ranks concerned, seconds waited, what, where; nothing
// when all is well. Never waits.
using Told = std::tuple<std::string, std::uint32_t, std::vector<int>, double, std::int64_t, std::int64_t>;
std::optional<Told> failure(const Cuda& cuda) {
  const volatile Failure& shared = cuda.segment.failure();
  if (shared.code == 0) return std::nullopt;
  std::atomic_thread_fence(std::memory_order_acquire);
  const auto& told = const_cast<const Failure&>(shared);
  std::vector<int> ranks;
  for (int rank = 0; rank < cuda.segment.world().ranks; ++rank) {
    if (told.missing[rank] != 0) ranks.push_back(rank);
  }
  return Told{told.phase == Phase::dispatch ? "dispatch" : "combine",
              told.code,
              ranks,
              static_cast<double>(told.waited_ns) * 1e-9,
              told.what,
              told.where};
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const WrongArgument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
}

LowLatencyCall call_of(int parts, std::uintptr_t ticket, int tokens, int topk, int max_tokens, int hidden,
                       int experts) {
  return {{max_tokens, hidden, experts}, tokens, topk, static_cast<Parts>(parts), at<std::uint64_t>(ticket), 0};
}

Map map_of(std::uintptr_t rows, std::uintptr_t weights, std::uintptr_t sent) {
  return {at<std::int32_t>(rows), at<float>(weights), at<std::uint64_t>(sent)};
}

}  // namespace
}  // namespace ep_core::cuda

NB_MODULE(_cuda, m) {
  using namespace ep_core::cuda;

  nb::set_leak_warnings(false);
  nb::register_exception_translator(translate);
  m.attr("BUILT_FOR") = EP_CORE_CUDA_BUILT_FOR;
  m.attr("COMPILER") = EP_CORE_CUDA_COMPILER;
  m.attr("MAX_RANKS") = kMaxRanks;
  m.attr("MAX_TOPK") = kMaxTopk;
  m.attr("MAX_EXPERTS") = kMaxExperts;
  m.attr("MAX_HIDDEN") = kMaxHidden;
  m.def("obstacle", &obstacle);
  // others: the most ranks of other nodes that a rank has.
  m.def(
      "low_latency_size_hint",
      [](int max_tokens, int hidden, int ranks, int experts, int others) {
        const LowLatencySizes sizes{max_tokens, hidden, experts};
        return LowLatencyLayout::least_bytes(sizes, ranks, others == 0 ? 0 : messages_bytes(sizes, ranks, others));
      },
      "max_tokens"_a, "hidden"_a, "ranks"_a, "experts"_a, "others"_a = 0);
  m.attr("PORT_HANDLE_BYTES") = port_handle_bytes();
  // By rank: its slot here, this rank's slot there, -1 for ranks of this node; and the most slots of any rank.
  m.def("port_slots", [](int rank, const std::vector<int>& node_of) {
    const SlotsOfRank slots(rank, node_of);
    return std::make_tuple(slots.here, slots.there, slots.most);
  });

  m.def("high_throughput_least_bytes", &HighThroughput::least_bytes);

  nb::class_<Cuda>(m, "Cuda")
      .def(nb::init<int, int, std::int64_t, std::int64_t, double, int>(), "rank"_a, "ranks"_a, "nvl_bytes"_a,
           "rdma_bytes"_a, "timeout_s"_a, "device"_a)
      .def_prop_ro("base", [](const Cuda& cuda) { return reinterpret_cast<std::uintptr_t>(cuda.segment.base()); })
      .def_prop_ro("size", [](const Cuda& cuda) { return cuda.segment.size(); })
      .def("ipc_handle",
           [](const Cuda& cuda) {
             const std::string handle = cuda.segment.ipc_handle();
             return nb::bytes(handle.data(), handle.size());
           })
      .def("connect_ipc",
           [](Cuda& cuda, const std::vector<nb::bytes>& handles) {
             std::vector<std::string> bytes;
             bytes.reserve(handles.size());
             for (const nb::bytes& handle : handles) bytes.emplace_back(handle.c_str(), handle.size());
             cuda.segment.connect_ipc(bytes);
           })
      .def("connect_pointers",
           [](Cuda& cuda, const std::vector<std::uintptr_t>& bases) { cuda.segment.connect_pointers(bases); })
      .def("connect_ports",
           [](Cuda& cuda, const std::vector<int>& node_of, const std::vector<nb::bytes>& handles,
              std::int64_t most_message_bytes) {
             std::vector<std::string> bytes;
             bytes.reserve(handles.size());
             for (const nb::bytes& handle : handles) bytes.emplace_back(handle.c_str(), handle.size());
             cuda.segment.connect_ports(node_of, bytes, most_message_bytes);
             cuda.low_latency.prepare_ports();
           })
      .def(
          "destroy", [](Cuda& cuda) { cuda.segment.destroy(); }, nb::call_guard<nb::gil_scoped_release>())
      .def("failure", &failure)
      .def("check_low_latency_fits", [](const Cuda& cuda, int max_tokens, int hidden,
                                        int experts) { cuda.low_latency.check_fits({max_tokens, hidden, experts}); })
      .def(
          "ll_dispatch",
          [](Cuda& cuda, std::uintptr_t stream, int parts, int multiprocessors, std::uintptr_t ticket, std::uintptr_t x,
             std::uintptr_t topk, std::uintptr_t weights, int tokens, int topk_count, int max_tokens, int hidden,
             int experts, bool fp8, bool round_scale, bool ue8m0, std::uintptr_t out_x, std::uintptr_t out_scales,
             std::uintptr_t out_src_info, std::uintptr_t out_layout_range, std::uintptr_t out_count,
             std::uintptr_t stats, std::uintptr_t map_rows, std::uintptr_t map_weights, std::uintptr_t map_sent) {
            cuda.low_latency.dispatch(
                call_of(parts, ticket, tokens, topk_count, max_tokens, hidden, experts),
                {at<const void>(x), at<const std::int64_t>(topk), at<const float>(weights), fp8, round_scale, ue8m0},
                {at<std::byte>(out_x), at<std::byte>(out_scales), at<std::int32_t>(out_src_info),
                 at<std::int64_t>(out_layout_range), at<std::int32_t>(out_count), at<std::int32_t>(stats)},
                map_of(map_rows, map_weights, map_sent), multiprocessors, stream_of(stream));
          })
      .def("ll_combine",
           [](Cuda& cuda, std::uintptr_t stream, int parts, int multiprocessors, std::uintptr_t ticket,
              std::uintptr_t x, std::uintptr_t topk, std::uintptr_t weights, int tokens, int topk_count, int max_tokens,
              int hidden, int experts, bool local_reduce, std::uintptr_t map_rows, std::uintptr_t map_weights,
              std::uintptr_t map_sent, std::uintptr_t out) {
             cuda.low_latency.combine(
                 call_of(parts, ticket, tokens, topk_count, max_tokens, hidden, experts),
                 {at<const void>(x), at<const std::int64_t>(topk), at<const float>(weights), local_reduce},
                 map_of(map_rows, map_weights, map_sent), at<void>(out), multiprocessors, stream_of(stream));
           })
      .def("dispatch_layout",
           [](const Cuda& cuda, std::uintptr_t stream, std::uintptr_t topk, int tokens, int topk_count, int experts,
              std::uintptr_t per_rank, std::uintptr_t per_expert, std::uintptr_t in_rank) {
             cuda.high_throughput.layout({at<const std::int64_t>(topk), tokens, topk_count, experts,
                                          at<std::int32_t>(per_rank), at<std::int32_t>(per_expert), at<bool>(in_rank)},
                                         stream_of(stream));
           })
      .def("ht_notify",
           [](Cuda& cuda, std::uintptr_t stream, int tokens, int experts, std::uintptr_t per_rank,
              std::uintptr_t per_expert, std::uintptr_t in_rank, std::int64_t room, std::uintptr_t rank_prefix,
              std::uintptr_t send_head, bool host_wanted) {
             cuda.high_throughput.notify(
                 {tokens, experts, at<const std::int32_t>(per_rank), at<const std::int32_t>(per_expert),
                  at<const bool>(in_rank), room, at<std::int32_t>(rank_prefix), at<std::int32_t>(send_head), nullptr},
                 host_wanted, stream_of(stream));
           })
      .def(
          "ht_counts", [](const Cuda& cuda, double timeout_s) { return cuda.high_throughput.counts(timeout_s); },
          nb::call_guard<nb::gil_scoped_release>())
      .def("ht_dispatch",
           [](const Cuda& cuda, std::uintptr_t stream, int multiprocessors, std::uintptr_t x, int row_bytes,
              std::uintptr_t scales, int scales_per_row, std::uintptr_t topk, std::uintptr_t weights, int topk_count,
              int tokens, int experts, std::uintptr_t in_rank, std::uintptr_t send_head, std::uintptr_t rank_prefix,
              std::int64_t room, std::uintptr_t out_x, std::uintptr_t out_scales, std::uintptr_t out_topk,
              std::uintptr_t out_weights, std::uintptr_t out_src_idx) {
             cuda.high_throughput.dispatch(
                 {at<const std::byte>(x), row_bytes, at<const float>(scales), scales_per_row,
                  at<const std::int64_t>(topk), at<const float>(weights), topk_count, tokens, experts,
                  at<const bool>(in_rank), at<const std::int32_t>(send_head), at<const std::int32_t>(rank_prefix), room,
                  at<std::byte>(out_x), at<float>(out_scales), at<std::int64_t>(out_topk), at<float>(out_weights),
                  at<std::int32_t>(out_src_idx)},
                 multiprocessors, stream_of(stream));
           })
      .def("ht_combine",
           [](const Cuda& cuda, std::uintptr_t stream, int multiprocessors, std::uintptr_t x, bool is_f32, int columns,
              std::uintptr_t weights, int topk_count, std::uintptr_t in_rank, std::uintptr_t send_head,
              std::uintptr_t rank_prefix, int tokens, std::int64_t rows, std::uintptr_t bias_0, std::uintptr_t bias_1,
              std::uintptr_t out, std::uintptr_t out_weights) {
             cuda.high_throughput.combine({at<const std::byte>(x),
                                           is_f32,
                                           columns * (is_f32 ? 4 : 2),
                                           rows,
                                           at<const float>(weights),
                                           topk_count,
                                           at<const bool>(in_rank),
                                           at<const std::int32_t>(send_head),
                                           at<const std::int32_t>(rank_prefix),
                                           tokens,
                                           {at<const std::byte>(bias_0), at<const std::byte>(bias_1)},
                                           at<std::byte>(out),
                                           at<float>(out_weights)},
                                          multiprocessors, stream_of(stream));
           });
}
