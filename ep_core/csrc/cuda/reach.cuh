// How a kernel reaches the other ranks: `Everyone` through mapped memory, or some of them by `Ports`. Kernels for
// buffers of one node are compiled without a trace of the latter.
#pragma once

#include "low_latency.cuh"
#include "ports.hpp"

namespace ep_core::cuda {

struct Ports;  // ports.cuh, which needs MSCCL++'s headers

template <bool kPorts>
struct Reach {
  using Type = Everyone;
};
template <>
struct Reach<true> {
  using Type = Ports;
};
template <bool kPorts>
using ReachOf = typename Reach<kPorts>::Type;

template <template <bool> class Args>
__device__ Everyone reach_of(const Args<false>&) {
  return {};
}

// What a block's warps share of messages between nodes.
template <bool kPorts>
struct MessagesShared {};
template <>
struct MessagesShared<true> {
  unsigned posted = 0;
  std::uint64_t came = 0;
};

}  // namespace ep_core::cuda
