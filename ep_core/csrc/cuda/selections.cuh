// Selections as low-latency dispatch announces them, and how a row's position is found: among the rows that its source
// sends to an expert, in order of token and place in top-k.
#pragma once

#include "low_latency.cuh"

namespace ep_core::cuda {

// A selection as it is announced: valid, expert, position.
__device__ inline std::uint32_t selection(int expert, int position) {
  return 1u << 31 | static_cast<std::uint32_t>(expert) << kPackBits | static_cast<std::uint32_t>(position);
}
__device__ inline int expert_of(std::uint32_t selection) {
  return (selection >> 31) == 0 ? -1 : static_cast<int>(selection >> kPackBits & (2 * kMaxExperts - 1));
}
__device__ inline int position_of(std::uint32_t selection) { return static_cast<int>(selection & (kMostTokens - 1)); }

// The tokens that a block announces at a time, one for each warp.
struct OwnTokens {
  std::uint32_t earlier[kWarps][kMaxTopk];  // [k]: selections by earlier tokens of the expert whose first place is k
  std::int8_t first[kWarps][kMaxExperts];   // [expert]: its first place in the token's top-k, or -1
};

// By a block: for each token dealt to it (one to each warp at a time), how many selections of earlier tokens of this
// rank have each expert that the token selects. `expert`: the warp's token's, lane k's selection, -1 where there is
// none.
__device__ inline void count_positions(OwnTokens& own, const std::int64_t* topk_idx, const LowLatencyCall& call,
                                       int first_token, int expert) {
  constexpr int kAhead = 4;
  const int topk = call.topk;
  const int stride = static_cast<int>(gridDim.x);
  const int left = max(call.tokens - first_token, 0);
  const int tokens = min(kWarps, (left + stride - 1) / stride);
  const std::int64_t end = tokens == 0 ? 0 : static_cast<std::int64_t>(first_token + (tokens - 1) * stride) * topk;
  std::int64_t ahead[kAhead];
  const auto load = [&](std::int64_t begin) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const std::int64_t at = begin + i * kThreads + threadIdx.x;
      ahead[i] = at < end ? topk_idx[at] : -1;
    }
  };
  load(0);
  const int words = tokens * kMaxExperts / 4;
  for (int i = threadIdx.x; i < words; i += kThreads) reinterpret_cast<std::uint32_t*>(own.first)[i] = kAll;
  own.earlier[warp_id()][lane_id()] = 0;
  __syncthreads();
  const unsigned alike = __match_any_sync(kAll, expert);
  if (expert >= 0 && __ffs(alike) - 1 == lane_id()) own.first[warp_id()][expert] = static_cast<std::int8_t>(lane_id());
  __syncthreads();
  for (std::int64_t begin = 0; begin < end; begin += kAhead * kThreads) {
    if (begin > 0) load(begin);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (ahead[i] < 0 || ahead[i] >= call.sizes.experts) continue;
      const std::int64_t at = begin + i * kThreads + threadIdx.x;
      for (int nth = 0; nth < tokens; ++nth) {
        const int place = own.first[nth][ahead[i]];
        const bool earlier = at < static_cast<std::int64_t>(first_token + nth * stride) * topk;
        if (place >= 0 && earlier) atomicAdd(&own.earlier[nth][place], 1u);
      }
    }
  }
  __syncthreads();
}

}  // namespace ep_core::cuda
