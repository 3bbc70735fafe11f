// What the two low-latency kernels share: where a half lies, how work is dealt out, how an operation begins.
#pragma once

#include "device.cuh"
#include "low_latency.hpp"

namespace ep_core::cuda {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

// Units of work go to warps in this order: one to each block first, so that few units use all multiprocessors.
__device__ inline int first_unit() { return warp_id() * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x); }
__device__ inline int unit_stride() { return kWarps * static_cast<int>(gridDim.x); }
// The other way round: warps that got nothing of the first kind of work come first with the second.
__device__ inline int last_unit() { return unit_stride() - 1 - first_unit(); }

// The half of the low-latency region that an operation uses.
struct Half {
  const World& world;
  const LowLatencyLayout& layout;
  std::int64_t words;
  std::int64_t payload;

  __device__ Half(const World& world_, const LowLatencyLayout& layout_, const Operation& op)
      : world(world_),
        layout(layout_),
        words(world_.low_latency + op.half() * layout_.word_stride),
        payload(world_.low_latency + layout_.payload + op.half() * layout_.payload_stride) {}

  // Within the own segment, from its base.
  __device__ std::int64_t from_base(std::int64_t offset) const { return payload + offset; }
  __device__ std::uint64_t* word(int peer, std::int64_t offset, std::int64_t index) const {
    return reinterpret_cast<std::uint64_t*>(world.base[peer] + words + offset) + index;
  }
  __device__ std::uint64_t* flag(int peer, std::int64_t row, int chunk) const {
    return word(peer, layout.flags, row * kMostChunks + chunk);
  }
  __device__ std::byte* at(int peer, std::int64_t offset) const { return world.base[peer] + payload + offset; }
};

// By one whole warp of every block: the operation this launch belongs to, whose half may be written. Epoch 0 when the
// buffer is broken: the half may still be read then, and what this launch has to send may be made of what an earlier
// one did not receive, which peers would take for good.
template <class Reach = Everyone>
__device__ Operation begin_call(const World& world, const LowLatencyCall& call, Phase phase, const Reach& reach = {}) {
  if ((call.parts & kSend) == 0) {
    return {phase, kLowLatency, is_broken(world) ? 0 : *call.ticket, call.signature};
  }
  Operation op = take_turn(world, phase, kLowLatency, call.signature);
  if constexpr (Reach::kPorts) reach.acknowledge_early(op);
  if (!wait_for_turn(world, op, reach)) op.epoch = 0;
  if constexpr (Reach::kPorts) {
    if (!reach.wait_for_turn_of_far(op)) op.epoch = 0;
  }
  // What other warps write into the half by bulk copies comes after what the peers acknowledged.
  proxy_fence();
  return op;
}

// The warp that tells peers of a launch, beside the work: in the block that is dealt work last.
__device__ inline bool tells() { return blockIdx.x == gridDim.x - 1 && warp_id() == kWarps - 2; }

// By that warp, before and after the operation is known: what peers, and later launches here, want to know.
template <class Reach = Everyone>
__device__ void tell_early(const World& world, const LowLatencyCall& call, const Reach& reach = {}) {
  if ((call.parts & kSend) != 0) acknowledge(world, kLowLatency, reach);
}
template <class Reach = Everyone>
__device__ void tell_late(const World& world, const LowLatencyCall& call, const Operation& op,
                          const Reach& reach = {}) {
  const bool receives = (call.parts & kReceive) != 0;
  if ((call.parts & kSend) != 0) {
    tell_call(world, op, receives, reach);
    if (!receives && lane_id() == 0) *call.ticket = op.epoch;
  } else if (lane_id() == 0) {
    world.control().consumed[kLowLatency][op.half()] = op.epoch;
  }
}

// The ranks, one bit each, that lanes name: `rank` of a lane, or -1.
__device__ inline std::uint64_t ranks_named(int rank) {
  const unsigned low = __reduce_or_sync(kAll, rank >= 0 && rank < 32 ? 1u << rank : 0u);
  const unsigned high = __reduce_or_sync(kAll, rank >= 32 ? 1u << (rank - 32) : 0u);
  return static_cast<std::uint64_t>(high) << 32 | low;
}

}  // namespace ep_core::cuda
