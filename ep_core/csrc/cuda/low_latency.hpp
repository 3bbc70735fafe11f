// What the low-latency kernels are given, and how they are launched. Plain C++; called by engine.cpp.
//
// One launch is one operation, or with a receive hook one half of it (`Parts`). Next to read: low_latency_dispatch.cu,
// low_latency_combine.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "layout.hpp"
#include "world.hpp"

namespace ep_core::cuda {

// What a launch does of its operation. A send alone takes the rank's own rows out of the caller's tensors too, which
// may change once it is over; the receive, later, takes its epoch from the ticket that the send left.
enum Parts : int { kSend = 1, kReceive = 2, kBoth = 3 };

struct LowLatencyCall {
  LowLatencySizes sizes;
  int tokens;  // on this rank
  int topk;    // selections of a token
  Parts parts;
  std::uint64_t* ticket;    // of the operation, written by its send and read by its receive; null for both in one
  std::uint32_t signature;  // of what all ranks must have alike
};

// What dispatch leaves for combine. Local expert l, slot i: row l * slots + i.
struct Map {
  std::int32_t* rows;   // [ranks, max_tokens, topk]: the row of that selection, -1: not here
  float* weights;       // [ranks, max_tokens, topk]: of rows that are here; null for combine exact
  std::uint64_t* sent;  // [max_tokens, 2]: own tokens: mask of the ranks they went to, mask of selections not masked
};

struct DispatchInput {
  const void* x;             // bf16 [tokens, hidden]
  const std::int64_t* topk;  // [tokens, topk]
  const float* weights;      // [tokens, topk]; null for combine exact
  bool fp8;
  bool round_scale;
  bool ue8m0;
};

struct DispatchOutput {
  std::byte* x;                // bf16 or e4m3 [local, slots, hidden]
  std::byte* scales;           // float32 [local, hidden / 128, slots]; ue8m0: uint8 [local, hidden / 512, slots, 4]
  std::int32_t* src_info;      // [local, slots]
  std::int64_t* layout_range;  // [local, ranks]
  std::int32_t* count;         // [local]
  std::int32_t* stats;         // [local], added to; may be null
};

struct CombineInput {
  const void* x;             // bf16 [local, slots, hidden]
  const std::int64_t* topk;  // [tokens, topk]
  const float* weights;      // [tokens, topk]
  bool local_reduce;
};

// Once for each device, before any launch: allow the kernels the shared memory they use.
cudaError_t prepare_dispatch();
cudaError_t prepare_combine();

cudaError_t launch_dispatch(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                            const DispatchInput& in, const DispatchOutput& out, const Map& map, int blocks,
                            cudaStream_t stream);
cudaError_t launch_combine(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                           const CombineInput& in, const Map& map, void* out, int blocks, cudaStream_t stream);

}  // namespace ep_core::cuda
