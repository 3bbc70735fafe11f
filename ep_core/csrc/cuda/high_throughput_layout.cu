// High throughput before any row moves: what a routing sends where (layout), and what every rank receives (notify).
//
// ep_ht_layout
// Grid: one cluster of 8 blocks of 512 threads, whatever the sizes, so that nothing needs to be cleared: each block
// counts in its shared memory, then the cluster adds up. A thread takes whole tokens. Reads 8 K bytes a token, writes
// R. Synchronization: cluster barriers (release and acquire at cluster scope) around the reading of others' counts.
//
// ep_ht_notify
// Grid: R blocks of 1024 threads; block r numbers the tokens for rank r, reading T bytes and writing 4 T. Block 0 also
// sends this rank's counts to all, R * (R + E / R + 2) words in all, and waits for the others'; no block waits for
// another of its rank, so they need not be resident together.
// Synchronization: words are value << 32 | epoch, whole in themselves, so they are stored relaxed at system scope. They
// lie in halves by the epoch's parity and need no acknowledgement: a rank writes epoch e + 2 when it has finished e +
// 1, thus after this rank began e + 1 and had done with e. Counts for the host: ordinary stores to pinned memory, a
// block barrier, then their epoch with st.release.sys.
//
// Next to read: high_throughput_dispatch.cu.
#include <cooperative_groups.h>

#include "high_throughput.cuh"

namespace ep_core::cuda {
namespace {

constexpr int kLayoutBlocks = 8;
constexpr int kLayoutThreads = 512;
constexpr int kNotifyThreads = 1024;

// Adds one to the counts of the experts that the token selects; the mask of their ranks. A wrong expert is told.
__device__ std::uint64_t count_token(const World& world, const HtLayout& in, int token, int* per_expert) {
  const int local = in.experts / world.ranks;
  const std::int64_t* row = in.topk + static_cast<std::int64_t>(token) * in.topk_count;
  std::uint64_t mask = 0;
  constexpr int kAtOnce = 8;
  for (int first = 0; first < in.topk_count; first += kAtOnce) {
    std::int64_t experts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) experts[i] = first + i < in.topk_count ? row[first + i] : -1;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t expert = experts[i];
      if (expert < -1 || expert >= in.experts) {
        fail_wrong_value(world, Phase::dispatch, expert, static_cast<std::int64_t>(token) * in.topk_count + first + i);
      } else if (expert >= 0) {
        atomicAdd(&per_expert[expert], 1);
        mask |= 1ull << (static_cast<int>(expert) / local);
      }
    }
  }
  return mask;
}

// By the whole block: the sum of `value` over threads before this one, and over all.
struct Scan {
  int before;
  int total;
};

__device__ Scan scan(int value, int (&warps)[kNotifyThreads / kWarp]) {
  static_assert(kNotifyThreads / kWarp == kWarp);
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const auto inclusive = [&](int sum) {
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int other = __shfl_up_sync(kAll, sum, distance);
      if (lane >= distance) sum += other;
    }
    return sum;
  };
  const int in_warp = inclusive(value);
  if (lane == kWarp - 1) warps[warp] = in_warp;
  __syncthreads();
  const int up_to = inclusive(warps[lane]);
  const int before_warp = __shfl_sync(kAll, up_to, warp) - __shfl_sync(kAll, warps[lane], warp);
  const int total = __shfl_sync(kAll, up_to, kWarp - 1);
  __syncthreads();
  return {before_warp + in_warp - value, total};
}

// By the whole block: numbers the tokens for `rank`.
__device__ void number_tokens(const World& world, const HtNotify& in, int rank, int (&warps)[kNotifyThreads / kWarp]) {
  const int share = (in.tokens + kNotifyThreads - 1) / kNotifyThreads;
  const int first = min(static_cast<int>(threadIdx.x) * share, in.tokens);
  const int end = min(first + share, in.tokens);
  const auto cell = [&](int token) { return static_cast<std::int64_t>(token) * world.ranks + rank; };
  int sent = 0;
  for (int token = first; token < end; ++token) sent += in.in_rank[cell(token)];
  const Scan at = scan(sent, warps);
  int position = at.before;
  for (int token = first; token < end; ++token) {
    in.send_head[cell(token)] = in.in_rank[cell(token)] ? position++ : -1;
  }
  if (threadIdx.x == 0 && at.total != in.per_rank[rank]) {
    fail_wrong(world, Phase::dispatch, Wrong::counts, in.per_rank[rank], rank, world.rank);
  }
}

// By all of block 0: tells every rank what this one sends and to whom.
__device__ void send_counts(const World& world, const HtNotify& in, const Operation& op) {
  const int half = op.parity();
  const int local = in.experts / world.ranks;
  const int ranks = world.ranks;
  for (int peer = threadIdx.x; peer < ranks; peer += kNotifyThreads) {
    Control& theirs = world.control(peer);
    store_relaxed(&theirs.call[kNotify][half][world.rank], tagged(op.signature, op.epoch));
    store_relaxed(&theirs.rooms[half][world.rank], tagged(static_cast<std::uint32_t>(in.room), op.epoch));
  }
  for (int i = threadIdx.x; i < ranks * ranks; i += kNotifyThreads) {
    const int destination = i % ranks;
    store_relaxed(&world.control(i / ranks).counts[half][world.rank][destination],
                  tagged(static_cast<std::uint32_t>(in.per_rank[destination]), op.epoch));
  }
  for (int i = threadIdx.x; i < in.experts; i += kNotifyThreads) {
    store_relaxed(&world.control(i / local).expert_counts[half][world.rank][i % local],
                  tagged(static_cast<std::uint32_t>(in.per_expert[i]), op.epoch));
  }
}

struct Received {
  int rows[kMaxRanks * kMaxRanks];  // [source][destination]
  int experts[kMaxExperts];         // local
};

// By all of block 0: waits for what every rank sends. Nobody is left behind when a wait fails; the buffer is broken
// then.
__device__ void receive_counts(const World& world, const HtNotify& in, const Operation& op, Received& received) {
  const int half = op.parity();
  const int local = in.experts / world.ranks;
  const int ranks = world.ranks;
  for (int i = threadIdx.x; i < local; i += kNotifyThreads) received.experts[i] = 0;
  __syncthreads();
  if (threadIdx.x < kWarp) check_alike(world, op);
  const Control& own = world.control();
  for (int i = threadIdx.x; i < ranks * ranks; i += kNotifyThreads) {
    const std::uint64_t* word = &own.counts[half][i / ranks][i % ranks];
    received.rows[i] = wait_for_epoch(world, op, i / ranks, word) ? static_cast<int>(value_of(load_relaxed(word))) : 0;
  }
  for (int i = threadIdx.x; i < in.experts; i += kNotifyThreads) {
    const std::uint64_t* word = &own.expert_counts[half][i / local][i % local];
    if (wait_for_epoch(world, op, i / local, word)) {
      atomicAdd(&received.experts[i % local], static_cast<int>(value_of(load_relaxed(word))));
    }
  }
  __syncthreads();
}

}  // namespace

__global__ void __cluster_dims__(kLayoutBlocks, 1, 1) __launch_bounds__(kLayoutThreads)
    ep_ht_layout(const __grid_constant__ World world, const __grid_constant__ HtLayout in) {
  __shared__ int counts[kMaxExperts + kMaxRanks];
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const int all = in.experts + world.ranks;
  int* const per_rank = counts + in.experts;
  for (int i = threadIdx.x; i < all; i += kLayoutThreads) counts[i] = 0;
  __syncthreads();
  const int step = kLayoutBlocks * kLayoutThreads;
  for (int first = blockIdx.x * kLayoutThreads; first < in.tokens; first += step) {
    const int token = first + static_cast<int>(threadIdx.x);
    const std::uint64_t mask = token < in.tokens ? count_token(world, in, token, counts) : 0;
    for (int rank = 0; rank < world.ranks; ++rank) {
      const bool goes = (mask >> rank & 1) != 0;
      const unsigned going = __ballot_sync(kAll, goes);
      if (threadIdx.x % kWarp == 0 && going != 0) atomicAdd(&per_rank[rank], __popc(going));
      if (token < in.tokens) in.in_rank[static_cast<std::int64_t>(token) * world.ranks + rank] = goes;
    }
  }
  cluster.sync();
  for (int i = blockIdx.x * kLayoutThreads + threadIdx.x; i < all; i += step) {
    int sum = 0;
    for (int block = 0; block < kLayoutBlocks; ++block) sum += cluster.map_shared_rank(counts, block)[i];
    (i < in.experts ? in.per_expert[i] : in.per_rank[i - in.experts]) = sum;
  }
  // No block ends while another reads its counts.
  cluster.sync();
}

__global__ void __launch_bounds__(kNotifyThreads)
    ep_ht_notify(const __grid_constant__ World world, const __grid_constant__ HtNotify in) {
  __shared__ Received received;
  __shared__ int warps[kNotifyThreads / kWarp];
  __shared__ std::uint64_t epoch;
  if (threadIdx.x == 0) epoch = take_epoch(&world.control().tickets[kNotify]);
  __syncthreads();
  const Signature signature{Signature::notify, static_cast<std::uint32_t>(in.experts), 0, 0, 0};
  const Operation op{Phase::dispatch, kNotify, epoch, signature.packed()};
  const bool first = blockIdx.x == 0;
  if (first) send_counts(world, in, op);
  number_tokens(world, in, static_cast<int>(blockIdx.x), warps);
  if (!first) return;

  receive_counts(world, in, op, received);
  const int ranks = world.ranks;
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < ranks) {
    int rows = 0;
    for (int source = 0; source < ranks; ++source) {
      rows += received.rows[source * ranks + rank];
      in.rank_prefix[source * ranks + rank] = rows;
    }
    const std::uint64_t* word = &world.control().rooms[op.parity()][rank];
    const bool known = wait_for_epoch(world, op, rank, word);
    const std::uint32_t room = value_of(load_relaxed(word));
    if (known && room > 0 && static_cast<std::uint32_t>(rows) > room) {
      fail_wrong(world, Phase::dispatch, Wrong::room, rows, room, rank);
    }
    if (rank == world.rank && in.counts != nullptr) in.counts->received = rows;
  }
  if (in.counts == nullptr) return;
  for (int i = threadIdx.x; i < in.experts / ranks; i += kNotifyThreads) in.counts->per_expert[i] = received.experts[i];
  if (__syncthreads_or(is_broken(world)) == 0 && threadIdx.x == 0) store_release(&in.counts->epoch, op.epoch);
}

cudaError_t prepare_high_throughput() {
  const cudaError_t dispatch = prepare_ht_dispatch();
  return dispatch != cudaSuccess ? dispatch : prepare_ht_combine();
}

cudaError_t launch_ht_layout(const World& world, const HtLayout& arguments, cudaStream_t stream) {
  ep_ht_layout<<<kLayoutBlocks, kLayoutThreads, 0, stream>>>(world, arguments);
  return cudaGetLastError();
}

cudaError_t launch_ht_notify(const World& world, const HtNotify& arguments, cudaStream_t stream) {
  ep_ht_notify<<<world.ranks, kNotifyThreads, 0, stream>>>(world, arguments);
  return cudaGetLastError();
}

}  // namespace ep_core::cuda
