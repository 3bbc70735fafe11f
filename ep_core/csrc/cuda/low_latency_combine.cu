// Low-latency combine: the experts' rows back to their tokens, and their weighted sum there.
//
// Grid: one block of 16 warps on each multiprocessor that is asked for, all resident. A unit of work is a piece of a
// row
// (`kCombineColumns`) for one token, dealt to warps; every warp first sends all of its units, which waits for nobody,
// then reduces its own. Warps without anything to send begin to reduce at once.
//   exact: `send_rows` stores each selection's piece into the source's segment, at [token][k]; the source adds
//      ((0 + w0 y0) + w1 y1) + ..., in float32, each product and each sum rounded, and rounds once to bf16.
//   local_reduce: `send_sum` adds the token's rows of this rank like that, rounds to bf16 and stores one piece into the
//      source's segment, at [rank][token]; the source adds the ranks' pieces in rank order.
// An own row never travels: exact reads it where it is; local_reduce keeps its own sum in its own segment.
//
// Traffic, bytes for each token (row = 2 H): reads row for each selection here; sends row for each selection of another
// rank's token (exact) or for each other rank's token (local_reduce), with 8 for each piece and rank; reads as much as
// comes back; writes row.
//
// Synchronisation: `begin` (device.cuh) makes the half writable. A piece's stores are completed by their lanes (bulk
// stores) or performed (ordinary ones), the lanes meet at __syncwarp, then one lane does st.release.sys of the flag in
// the source's segment; there lanes do ld.acquire.sys and meet at __syncwarp before any reads. One flag for all pieces
// that a rank sends for one chunk of a token. Blocks of a rank share nothing but the ticket.
#include "low_latency.cuh"

namespace ep_core::cuda {
namespace {

struct CombineArgs {
  World world;
  LowLatencyLayout layout;
  LowLatencyCall call;
  CombineInput in;
  Map map;
  std::byte* out;
  Chunks chunks;
};

constexpr int kPieceBytes = 2 * kCombineColumns;
constexpr int kVectors = kPieceBytes / 16 / kWarp;  // 16-byte vectors of a piece for each lane
constexpr int kBatch = 4;                           // rows in flight

struct alignas(128) WarpBuffer {
  std::byte pieces[kBatch][kPieceBytes];
};

// A lane's columns of a piece, in float32.
struct Sum {
  float value[kVectors][8];

  __device__ void clear() {
#pragma unroll
    for (auto& vector : value) {
#pragma unroll
      for (float& one : vector) one = 0.0f;
    }
  }

  __device__ void add(int vector, const uint4& pairs, float weight) {
    const std::uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& low = value[vector][2 * i];
      float& high = value[vector][2 * i + 1];
      low = __fadd_rn(low, __fmul_rn(weight, __uint_as_float(words[i] << 16)));
      high = __fadd_rn(high, __fmul_rn(weight, __uint_as_float(words[i] & 0xffff0000u)));
    }
  }

  __device__ uint4 rounded(int vector) const {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair{__float2bfloat16_rn(value[vector][2 * i]),
                                __float2bfloat16_rn(value[vector][2 * i + 1])};
      words[i] = *reinterpret_cast<const std::uint32_t*>(&pair);
    }
    return {words[0], words[1], words[2], words[3]};
  }
};

class Combine {
 public:
  __device__ Combine(const CombineArgs& args, const Operation& op, WarpBuffer& buffer, std::uint64_t* barrier)
      : a(args),
        world(args.world),
        op(op),
        half(args.world, args.layout, op),
        row_bytes(2ll * args.call.sizes.hidden),
        local(args.call.sizes.experts / args.world.ranks),
        buffer(buffer),
        barrier(barrier) {}

  // By a warp: the piece of every row that the token sent here, back to its rank.
  __device__ void send_rows(int source, int token, int chunk) {
    const std::int64_t row = row_here(source, token);
    const unsigned here = __ballot_sync(kAll, row >= 0);
    if (here == 0) return;
    const int bytes = piece_bytes(chunk);
    for (unsigned left = here; left != 0;) {
      int mine = -1;
      int count = 0;
      for (; count < kBatch && left != 0; ++count, left &= left - 1) {
        if (lane_id() == count) mine = __ffs(left) - 1;
      }
      const std::int64_t from = __shfl_sync(kAll, row, max(mine, 0));
      bulk_wait_read<0>();
      __syncwarp();
      if (lane_id() == 0) barrier_expect(barrier, count * bytes);
      __syncwarp();
      if (mine >= 0) bulk_load(buffer.pieces[lane_id()], input(from, chunk), bytes, barrier);
      barrier_wait(barrier, parity);
      parity ^= 1;
      if (mine >= 0) bulk_store(half.at(source, selection_at(token, mine, chunk)), buffer.pieces[lane_id()], bytes);
      bulk_commit();
    }
    bulk_wait<0>();
    __syncwarp();
    raise_flag(source, token, chunk);
  }

  // By a warp: the sum of the token's rows here, as one piece, to its rank (or into the own segment, without a flag).
  __device__ void send_sum(int source, int token, int chunk, bool with_flag) {
    const std::int64_t row = row_here(source, token);
    const unsigned here = __ballot_sync(kAll, row >= 0);
    if (here == 0) return;
    const std::int64_t index = selection_index(source, token) + lane_id();
    const float weight = row >= 0 ? a.map.weights[index] : 0.0f;
    Sum sum;
    sum.clear();
    add_pieces(
        sum, here, chunk, [&](int k) { return input(__shfl_sync(kAll, row, k), chunk); },
        [&](int k) { return __shfl_sync(kAll, weight, k); });
    write(half.at(source, sum_at(world.rank, token, chunk)), sum, chunk);
    __syncwarp();
    if (with_flag) raise_flag(source, token, chunk);
  }

  // By a warp: the token's selections, which have come back, as one piece of the result.
  __device__ void reduce_rows(int token, int chunk, bool own_in_place) {
    const std::int64_t index = static_cast<std::int64_t>(token) * a.call.topk + lane_id();
    const std::int64_t expert = lane_id() < a.call.topk ? a.in.topk[index] : -1;
    const bool dispatched = a.map.sent[2 * token + 1] >> lane_id() & 1;
    const bool wrong = expert < -1 || expert >= a.call.sizes.experts || (expert >= 0 && !dispatched);
    if (wrong) fail_wrong_value(world, op.phase, expert, index);
    if (__any_sync(kAll, wrong)) return;
    const int owner = expert >= 0 ? static_cast<int>(expert) / local : -1;
    const std::uint64_t awaited = ranks_named(owner) & (own_in_place ? ~(1ull << world.rank) : ~0ull);
    const std::int64_t own_row = own_in_place && owner == world.rank ? row_here(world.rank, token) : -1;
    const float weight = expert >= 0 ? a.in.weights[index] : 0.0f;
    if (!await(awaited, token, chunk)) return;
    const std::byte* from = owner < 0      ? nullptr
                            : own_row >= 0 ? input(own_row, chunk)
                                           : half.at(world.rank, selection_at(token, lane_id(), chunk));
    const auto address = reinterpret_cast<std::uintptr_t>(from);
    Sum sum;
    sum.clear();
    add_pieces(
        sum, __ballot_sync(kAll, owner >= 0), chunk,
        [&](int k) { return reinterpret_cast<const std::byte*>(__shfl_sync(kAll, address, k)); },
        [&](int k) { return __shfl_sync(kAll, weight, k); });
    write(a.out + token * row_bytes + chunk * a.chunks.columns * 2, sum, chunk);
  }

  // By a warp: the ranks' sums for the token, in rank order, as one piece of the result.
  __device__ void reduce_sums(int token, int chunk, bool own_in_place) {
    const std::uint64_t ranks = a.map.sent[2 * token];
    const std::uint64_t self = 1ull << world.rank;
    if (own_in_place && (ranks & self) != 0) send_sum(world.rank, token, chunk, false);
    if (!await(own_in_place ? ranks & ~self : ranks, token, chunk)) return;
    Sum sum;
    sum.clear();
    for (int part = 0; part < 2; ++part) {
      add_pieces(
          sum, static_cast<unsigned>(ranks >> (32 * part)), chunk,
          [&](int bit) { return half.at(world.rank, sum_at(32 * part + bit, token, chunk)); },
          [](int) { return 1.0f; });
    }
    write(a.out + token * row_bytes + chunk * a.chunks.columns * 2, sum, chunk);
  }

 private:
  __device__ std::int64_t selection_index(int source, int token) const {
    return (static_cast<std::int64_t>(source) * a.call.sizes.max_tokens + token) * a.call.topk;
  }
  // Lane k's row for selection k of the token, or -1.
  __device__ std::int64_t row_here(int source, int token) const {
    return lane_id() < a.call.topk ? a.map.rows[selection_index(source, token) + lane_id()] : -1;
  }
  __device__ int piece_bytes(int chunk) const { return 2 * a.chunks.of(chunk, a.call.sizes.hidden); }
  __device__ const std::byte* input(std::int64_t row, int chunk) const {
    return static_cast<const std::byte*>(a.in.x) + row * row_bytes + chunk * a.chunks.columns * 2;
  }
  __device__ std::int64_t selection_at(int token, int k, int chunk) const {
    return (static_cast<std::int64_t>(token) * a.call.topk + k) * row_bytes + chunk * a.chunks.columns * 2;
  }
  __device__ std::int64_t sum_at(int rank, int token, int chunk) const {
    return (static_cast<std::int64_t>(rank) * a.call.sizes.max_tokens + token) * row_bytes +
           chunk * a.chunks.columns * 2;
  }
  __device__ std::uint64_t* flag(int at, int from, int token, int chunk) const {
    return half.flag(at, static_cast<std::int64_t>(from) * a.call.sizes.max_tokens + token, chunk);
  }
  __device__ void raise_flag(int source, int token, int chunk) {
    if (lane_id() == 0) store_release(flag(source, world.rank, token, chunk), op.epoch);
  }

  // Waits for these ranks' pieces of a token; false when one did not come.
  __device__ bool await(std::uint64_t ranks, int token, int chunk) {
    bool there = true;
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if ((ranks >> peer & 1) == 0) continue;
      there = there && wait_for_epoch(world, op, peer, flag(world.rank, peer, token, chunk));
    }
    return __all_sync(kAll, there);
  }

  // Adds the pieces that `wanted` names, in ascending order, several of them in flight.
  template <class Piece, class Weight>
  __device__ void add_pieces(Sum& sum, unsigned wanted, int chunk, const Piece& piece, const Weight& weight) {
    const int vectors = piece_bytes(chunk) / 16;
    while (wanted != 0) {
      uint4 found[kBatch][kVectors];
      float weights[kBatch];
      int count = 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (wanted == 0) break;
        const int bit = __ffs(wanted) - 1;
        wanted &= wanted - 1;
        const auto* from = reinterpret_cast<const uint4*>(piece(bit));
        weights[i] = weight(bit);
        count = i + 1;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          if (v * kWarp + lane_id() < vectors) found[i][v] = from[v * kWarp + lane_id()];
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i >= count) break;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          if (v * kWarp + lane_id() < vectors) sum.add(v, found[i][v], weights[i]);
        }
      }
    }
  }

  __device__ void write(std::byte* to, const Sum& sum, int chunk) const {
    const int vectors = piece_bytes(chunk) / 16;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v * kWarp + lane_id() < vectors) reinterpret_cast<uint4*>(to)[v * kWarp + lane_id()] = sum.rounded(v);
    }
  }

  const CombineArgs& a;
  const World& world;
  const Operation op;
  const Half half;
  const std::int64_t row_bytes;
  const int local;
  WarpBuffer& buffer;
  std::uint64_t* barrier;
  std::uint32_t parity = 0;
};

template <bool kLocalReduce>
__global__ void __launch_bounds__(kThreads, 1) ep_ll_combine(const __grid_constant__ CombineArgs a) {
  extern __shared__ __align__(128) std::byte dynamic[];
  __shared__ __align__(8) std::uint64_t barriers[kWarps];
  __shared__ Operation shared_op;
  const bool sends = (a.call.parts & kSend) != 0;
  const bool receives = (a.call.parts & kReceive) != 0;
  if (lane_id() == 0) {
    barrier_init(&barriers[warp_id()]);
    barrier_init_fence();
  }
  if (warp_id() == kWarps - 1) {
    const Operation begun = begin_call(a.world, a.call, Phase::combine);
    if (lane_id() == 0) shared_op = begun;
  }
  __syncthreads();
  const Operation op = shared_op;
  Combine combine(a, op, reinterpret_cast<WarpBuffer*>(dynamic)[warp_id()], &barriers[warp_id()]);

  if (publishes()) publish_call(a.world, a.call, op);
  const int chunks = a.chunks.count;
  if (sends) {
    const int sources = receives ? a.world.ranks - 1 : a.world.ranks;
    const int units = a.call.sizes.max_tokens * sources * chunks;
    for (int unit = first_unit(); unit < units; unit += unit_stride()) {
      const int nth = unit / chunks % sources;
      const int source = receives ? (a.world.rank + 1 + nth) % a.world.ranks : nth;
      const int token = unit / chunks / sources;
      if constexpr (kLocalReduce) {
        combine.send_sum(source, token, unit % chunks, true);
      } else {
        combine.send_rows(source, token, unit % chunks);
      }
    }
  }
  if (receives) {
    if (blockIdx.x == 0 && warp_id() == kWarps - 1) check_alike(a.world, op);
    const int units = a.call.tokens * chunks;
    for (int unit = last_unit(); unit < units; unit += unit_stride()) {
      if constexpr (kLocalReduce) {
        combine.reduce_sums(unit / chunks, unit % chunks, sends);
      } else {
        combine.reduce_rows(unit / chunks, unit % chunks, sends);
      }
    }
  }
}

template <bool kLocalReduce>
cudaError_t launch(const CombineArgs& args, int blocks, cudaStream_t stream) {
  constexpr int kBytes = kLocalReduce ? 0 : kWarps * sizeof(WarpBuffer);
  const cudaError_t set =
      cudaFuncSetAttribute(ep_ll_combine<kLocalReduce>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (set != cudaSuccess) return set;
  ep_ll_combine<kLocalReduce><<<blocks, kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_combine(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                           const CombineInput& in, const Map& map, void* out, int blocks, cudaStream_t stream) {
  const CombineArgs args{
      world, layout, call, in, map, static_cast<std::byte*>(out), chunks_of(call.sizes.hidden, kCombineColumns)};
  return in.local_reduce ? launch<true>(args, blocks, stream) : launch<false>(args, blocks, stream);
}

}  // namespace ep_core::cuda
