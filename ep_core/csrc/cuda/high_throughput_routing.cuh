// Where a rank's tokens go and which rows come here, as high throughput's kernels read it from the handle's tensors,
// and what happens when those do not belong together.
//
// Next to read: high_throughput_dispatch.cu.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "high_throughput.hpp"

namespace ep_core::cuda {

// Marks the buffer as broken and says which values do not belong together.
__device__ inline void fail_wrong(const World& world, Phase phase, Wrong wrong, std::int64_t what, std::int64_t where,
                                  int rank) {
  if (!first_to_fail(world)) return;
  world.failure->missing[rank] = 1;
  world.failure->phase = phase;
  world.failure->what = what;
  world.failure->where = where;
  tell(world, static_cast<std::uint32_t>(wrong));
}

// A lane looks after peers lane and lane + 32: its value for `peer`, by the whole warp.
constexpr int kHalves = kMaxRanks / kWarp;

template <class Value>
__device__ Value for_peer(const Value (&values)[kHalves], int peer) {
  const Value value = peer < kWarp ? values[0] : values[1];
  if constexpr (std::is_pointer_v<Value>) {
    return reinterpret_cast<Value>(__shfl_sync(kAll, reinterpret_cast<unsigned long long>(value), peer % kWarp));
  } else {
    return __shfl_sync(kAll, value, peer % kWarp);
  }
}

// Rows from sources up to and including `source` to `destination`; 0 for source -1.
__device__ inline int rows_up_to(const World& world, const std::int32_t* rank_prefix, int source, int destination) {
  return source < 0 ? 0 : rank_prefix[source * world.ranks + destination];
}

// By all threads: whether the rows that come here are ascending over sources and at most `room` (0: any number). If not
// the host is told, with `wrong` for too many.
__device__ inline bool check_prefix(const World& world, Phase phase, Wrong wrong, const std::int32_t* rank_prefix,
                                    std::int64_t room) {
  const int source = threadIdx.x;
  bool good = true;
  if (source < world.ranks) {
    const int rows = rows_up_to(world, rank_prefix, source, world.rank);
    if (rows < rows_up_to(world, rank_prefix, source - 1, world.rank)) {
      fail_wrong(world, phase, Wrong::handle, -1, source, world.rank);
      good = false;
    } else if (source + 1 == world.ranks && room > 0 && rows > room) {
      fail_wrong(world, phase, wrong, rows, room, world.rank);
      good = false;
    }
  }
  return __syncthreads_and(good) != 0;
}

// Where a lane's peers have a token: position among the rows for that rank, -1: it does not go there.
struct Heads {
  int position[kHalves];
  bool sent[kHalves];
};

// Which of a rank's tokens go where.
struct Routing {
  const World& world;
  const bool* in_rank;
  const std::int32_t* send_head;
  int tokens;
  int rows[kHalves];       // for the lane's peers, in all
  std::int64_t own_begin;  // of the rows that stay here, among those received

  __device__ Routing(const World& world_, const bool* in_rank_, const std::int32_t* send_head_,
                     const std::int32_t* rank_prefix, int tokens_)
      : world(world_), in_rank(in_rank_), send_head(send_head_), tokens(tokens_) {
    for (int h = 0; h < kHalves; ++h) {
      const int peer = threadIdx.x % kWarp + h * kWarp;
      rows[h] = peer < world.ranks ? rows_up_to(world, rank_prefix, world.rank, peer) -
                                         rows_up_to(world, rank_prefix, world.rank - 1, peer)
                                   : 0;
    }
    own_begin = rows_up_to(world, rank_prefix, world.rank - 1, world.rank);
  }

  __device__ Heads of(int token) const {
    Heads heads;
    for (int h = 0; h < kHalves; ++h) {
      const int peer = threadIdx.x % kWarp + h * kWarp;
      const bool is = token < tokens && peer < world.ranks;
      const std::int64_t cell = static_cast<std::int64_t>(token) * world.ranks + peer;
      heads.position[h] = is ? send_head[cell] : -1;
      heads.sent[h] = is && in_rank[cell];
    }
    return heads;
  }

  // By the whole warp: the ranks that the token goes to; false when the tensors disagree, which the host is then told.
  __device__ bool check(Phase phase, const Heads& heads, int token, std::uint64_t& destinations) const {
    bool good = true;
    destinations = 0;
    for (int h = 0; h < kHalves; ++h) {
      destinations |= static_cast<std::uint64_t>(__ballot_sync(kAll, heads.sent[h])) << (h * kWarp);
      good = good && heads.sent[h] == (heads.position[h] >= 0);
      good = good && (!heads.sent[h] || heads.position[h] < rows[h]);
    }
    if (__all_sync(kAll, good)) return true;
    if (threadIdx.x % kWarp == 0) fail_wrong(world, phase, Wrong::handle, token, -1, world.rank);
    return false;
  }
};

}  // namespace ep_core::cuda
