// High throughput's combine: rows go back to their sources, which add those of a token in rank order.
//
// ep_ht_combine
// Grid: as many blocks as asked for, at most one an SM, all resident; 512 threads, 225 KiB of shared memory.
// Warps: every fourth sends, the others reduce, which is more work. Senders share out the rows of each source, row j to
// sender j % senders; reducers this rank's tokens, token t to reducer t % reducers. See high_throughput.hpp for why no
// ring is too small.
// - A sender copies a row of x through shared memory into its place in the source's ring, its weights beside it.
// - A reducer loads pieces of all rows of a token, biases first and then ranks in order, its own row from x and the
//   others from the ring, seven pieces under way at a time, and adds them in float32 registers in that order from 0,
//   rounding each sum; the result is rounded once and written. Then it gives the places back.
// Traffic of a rank, in bytes for rows of B bytes: a row for a peer is read from x and written over the link to the
// ring (2 B); a token with d rows reads them (d B; the peers' from the L2 cache where the ring fits) and its biases,
// and writes B.
//
// Synchronization. Flag of a place: by the lane whose bulk stores wrote the row, once they are complete, and after a
// warp barrier with the lanes that stored the weights: st.release.sys, since the reader is on another GPU. Reader: each
// lane ld.acquire.sys for its peers, a warp barrier, fence.proxy.async by all (what follows are bulk loads, in the
// async proxy), then bulk loads and ordinary loads of the weights. Credit of a place: when all loads of the token are
// complete, after a warp barrier, st.release.sys; acquired by the sender with ld.acquire.sys and fence.proxy.async
// before its bulk stores; so are the peers' acknowledgements in `enter`. Nothing has gpu scope: blocks of a rank share
// nothing but `broken`, a hint.
#include "high_throughput.cuh"

namespace ep_core::cuda {
namespace {

using ReducePipe = Pipe<2048>;
constexpr int kCombineSenders = 4;  // warps of a block
constexpr int kVectorBytes = 16;
constexpr int kVectors = ReducePipe::kPieceBytes / kVectorBytes / kWarp;  // of a lane in a piece

// A lane's float32 sums of the columns in 16 bytes of a row.
template <bool kF32>
struct Sums {
  float of[kF32 ? 4 : 8] = {};

  __device__ void add(const uint4& vector) {
    const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    for (int i = 0; i < 4; ++i) {
      if constexpr (kF32) {
        of[i] += __uint_as_float(words[i]);
      } else {
        of[2 * i] += __uint_as_float(words[i] << 16);
        of[2 * i + 1] += __uint_as_float(words[i] & 0xffff0000u);
      }
    }
  }
  __device__ uint4 result() const {
    std::uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
      if constexpr (kF32) {
        words[i] = __float_as_uint(of[i]);
      } else {
        words[i] = to_bf16_pair(of[2 * i], of[2 * i + 1]);
      }
    }
    return {words[0], words[1], words[2], words[3]};
  }
};

__device__ void send(const World& world, const HtCombine& in, const PlaceLayout& at, const Ring& ring,
                     const Operation& op, RowPipe& pipe, const Worker& worker) {
  const int lane = threadIdx.x % kWarp;
  int begin[kHalves];
  PeerRows rows = rows_here(world, in.rank_prefix, worker, begin);
  rows.words = ring.credit(world.rank, 0, 0);
  rows.behind = 1;
  Announcement pending;
  for (;;) {
    const Turn turn = next_row(ring, op, rows, [&] { pending.finish(); });
    if (turn.peer < 0) break;
    if (turn.row >= ring.places) proxy_fence();
    const std::int64_t row = for_peer(begin, turn.peer) + turn.row;
    RowMove move(in.x + row * in.row_bytes, in.row_bytes);
    move.start(pipe);
    std::byte* const place = ring.row(turn.peer, world.rank, turn.row % ring.places);
    if (lane < in.topk_count) {
      reinterpret_cast<float*>(place + at.weights)[lane] = in.weights[row * in.topk_count + lane];
    }
    std::byte* const to[kHalves] = {lane == 0 ? place : nullptr, nullptr};
    move.finish(pipe, to, &pending);
    pending.flag[0] = lane == 0 ? ring.flag(turn.peer, world.rank, turn.row % ring.places) : nullptr;
    pending.word[0] = ring.word(turn.row / ring.places);
  }
  pending.finish();
}

// The pieces of a token's rows in the order in which they are added: piece by piece, in each the biases and then the
// ranks.
struct PieceOrder {
  const HtCombine& in;
  std::int64_t token_offset;
  std::uint64_t ranks;
  int biases;
  int items;  // rows

  int piece = 0;
  int item = 0;
  std::uint64_t left;

  __device__ PieceOrder(const HtCombine& in_, int token, std::uint64_t ranks_)
      : in(in_), token_offset(static_cast<std::int64_t>(token) * in_.row_bytes), ranks(ranks_), left(ranks_) {
    biases = (in.bias[0] != nullptr) + (in.bias[1] != nullptr);
    items = biases + __popcll(ranks);
  }
  __device__ static int bytes_of(int row_bytes, int piece) {
    return min(row_bytes - piece * ReducePipe::kPieceBytes, ReducePipe::kPieceBytes);
  }
  // By the whole warp: issues the next load. `rows`: where the lane's peers' rows lie.
  __device__ void load(ReducePipe& pipe, const std::byte* const (&rows)[kHalves]) {
    const std::byte* from;
    if (item < biases) {
      from = (item == 0 && in.bias[0] != nullptr ? in.bias[0] : in.bias[1]) + token_offset;
    } else {
      from = for_peer(rows, __ffsll(static_cast<long long>(left)) - 1);
      left &= left - 1;
    }
    pipe.load(from + piece * ReducePipe::kPieceBytes, bytes_of(in.row_bytes, piece));
    if (++item < items) return;
    item = 0;
    left = ranks;
    ++piece;
  }
};

template <bool kF32>
__device__ void add_rows(ReducePipe& pipe, PieceOrder& order, const std::byte* const (&rows)[kHalves], std::byte* out,
                         int row_bytes) {
  const int lane = threadIdx.x % kWarp;
  const int pieces = (row_bytes + ReducePipe::kPieceBytes - 1) / ReducePipe::kPieceBytes;
  for (int piece = 0; piece < pieces; ++piece) {
    const int bytes = PieceOrder::bytes_of(row_bytes, piece);
    Sums<kF32> sums[kVectors];
    for (int item = 0; item < order.items; ++item) {
      const std::byte* stage = pipe.take();
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int offset = (v * kWarp + lane) * kVectorBytes;
        if (offset < bytes) sums[v].add(*reinterpret_cast<const uint4*>(stage + offset));
      }
      // The whole warp has read the stage.
      __syncwarp();
      if (order.piece < pieces) order.load(pipe, rows);
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int offset = (v * kWarp + lane) * kVectorBytes;
      if (offset < bytes) {
        *reinterpret_cast<uint4*>(out + piece * ReducePipe::kPieceBytes + offset) = sums[v].result();
      }
    }
  }
}

__device__ void reduce(const World& world, const HtCombine& in, const PlaceLayout& at, const Ring& ring,
                       const Operation& op, ReducePipe& pipe, const Worker& worker) {
  const int lane = threadIdx.x % kWarp;
  const int pieces = (in.row_bytes + ReducePipe::kPieceBytes - 1) / ReducePipe::kPieceBytes;
  const Routing routing(world, in.in_rank, in.send_head, in.rank_prefix, in.tokens);
  Heads next = routing.of(worker.index);
  for (int token = worker.index; token < in.tokens; token += worker.count) {
    const Heads heads = next;
    std::uint64_t ranks;
    if (!routing.check(Phase::combine, heads, token, ranks)) break;
    next = routing.of(token + worker.count);

    const std::byte* rows[kHalves];
    const float* weights[kHalves];
    bool good = true;
    for (int h = 0; h < kHalves; ++h) {
      const int rank = lane + h * kWarp;
      const int position = heads.position[h];
      rows[h] = nullptr;
      weights[h] = nullptr;
      if (!heads.sent[h]) continue;
      if (rank == world.rank) {
        rows[h] = in.x + (routing.own_begin + position) * in.row_bytes;
        weights[h] = in.weights + (routing.own_begin + position) * in.topk_count;
        continue;
      }
      rows[h] = ring.row(world.rank, rank, position % ring.places);
      weights[h] = reinterpret_cast<const float*>(rows[h] + at.weights);
      const std::uint64_t wanted = ring.word(position / ring.places);
      good = good && wait_until(world, op, rank, ring.flag(world.rank, rank, position % ring.places),
                                [&](std::uint64_t value) { return value == wanted; });
    }
    if (!__all_sync(kAll, good)) break;
    __syncwarp();
    proxy_fence();

    PieceOrder order(in, token, ranks);
    const int total = order.items * pieces;
    for (int i = 0; i < total && i < ReducePipe::kStages; ++i) order.load(pipe, rows);
    if (in.topk_count > 0) {
      float sum = 0.0f;
      for (std::uint64_t rest = ranks; rest != 0; rest &= rest - 1) {
        const int rank = __ffsll(static_cast<long long>(rest)) - 1;
        const float* of_rank = for_peer(weights, rank);
        if (lane < in.topk_count) sum += of_rank[lane];
      }
      if (lane < in.topk_count) in.out_weights[static_cast<std::int64_t>(token) * in.topk_count + lane] = sum;
    }
    std::byte* const out = in.out + static_cast<std::int64_t>(token) * in.row_bytes;
    if (in.is_f32) {
      add_rows<true>(pipe, order, rows, out, in.row_bytes);
    } else {
      add_rows<false>(pipe, order, rows, out, in.row_bytes);
    }
    __syncwarp();
    for (int h = 0; h < kHalves; ++h) {
      const int rank = lane + h * kWarp;
      if (heads.sent[h] && rank != world.rank) ring.give_back(rank, heads.position[h], routing.rows[h]);
    }
  }
}

}  // namespace

__global__ void __launch_bounds__(kHtThreads, 1)
    ep_ht_combine(const __grid_constant__ World world, const __grid_constant__ HtCombine arguments,
                  const __grid_constant__ RingLayout at) {
  extern __shared__ __align__(128) std::byte memory[];
  HtShared& shared = *reinterpret_cast<HtShared*>(memory);
  if (!enter(world, Phase::combine, arguments.signature().packed(), shared)) return;
  if (!check_prefix(world, Phase::combine, Wrong::handle, arguments.rank_prefix, arguments.rows)) return;
  const Ring ring(world, at, shared.op);
  const Worker worker(kCombineSenders);
  if (worker.sends) {
    RowPipe pipe(shared);
    send(world, arguments, arguments.place(), ring, shared.op, pipe, worker);
  } else {
    ReducePipe pipe(shared);
    reduce(world, arguments, arguments.place(), ring, shared.op, pipe, worker);
  }
}

cudaError_t prepare_ht_combine() {
  return cudaFuncSetAttribute(ep_ht_combine, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(HtShared));
}

cudaError_t launch_ht_combine(const World& world, const HtCombine& arguments, std::int64_t ring_bytes, int sms,
                              cudaStream_t stream) {
  const RingLayout at(arguments.place().bytes, world.ranks, ring_bytes);
  if (at.places < 1) return cudaErrorInvalidValue;
  ep_ht_combine<<<sms, kHtThreads, sizeof(HtShared), stream>>>(world, arguments, at);
  return cudaGetLastError();
}

}  // namespace ep_core::cuda
