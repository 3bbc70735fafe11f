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

  template <class Args>
  __device__ static Type of(const Args&) {
    return {};
  }
};
template <>
struct Reach<true> {
  using Type = Ports;

  // Complete when a kernel is made with it.
  template <class Args, class Made = Ports>
  __device__ static Made of(const Args& args) {
    return {args.world, args.ports};
  }
};
template <bool kPorts>
using ReachOf = typename Reach<kPorts>::Type;

// What a block's warps share of messages between nodes.
template <bool kPorts>
struct MessagesShared {};
template <>
struct MessagesShared<true> {
  unsigned posted = 0;
  std::uint64_t came = 0;
};

}  // namespace ep_core::cuda
