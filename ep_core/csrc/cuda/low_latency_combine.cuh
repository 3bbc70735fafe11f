// Low-latency combine: the experts' rows back to their tokens, and their weighted sum there. Included by
// low_latency_combine.cu, and by ports_combine.cu for buffers whose ranks are on several nodes (`kPorts`).
//
// Grid: one block of 16 warps on each multiprocessor that is asked for, all resident. A unit of work is a piece of a
// row (`kCombineColumns`) for one token, dealt to warps; every warp first sends all of its units, which waits for
// nobody, then reduces its own. Warps without anything to send begin to reduce at once. What a warp reads of this rank
// first it reads while the operation begins (`Gather` needs to know no operation).
//   exact: `send_rows` stores each selection's piece into the source's segment, at [token][k]; the source adds
//      ((0 + w0 y0) + w1 y1) + ..., in float32, each product and each sum rounded, and rounds once to bf16.
//   local_reduce: `send_sum` adds the token's rows of this rank like that, rounds to bf16 and stores one piece into the
//      source's segment, at [rank][token]; the source adds the ranks' pieces in rank order.
// What goes to a rank of another node is put together in this rank's own segment, and sent when all blocks have done
// their part (ports.cuh); the source finds it there by the message's table.
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
#pragma once

#include "low_latency_gather.cuh"

namespace ep_core::cuda {
namespace {

// The rest: what goes to other ranks and comes from them.
template <bool kPorts>
class Combine {
 public:
  __device__ Combine(const CombineArgs<kPorts>& args, const ReachOf<kPorts>& reach, const Operation& op, Gather& gather)
      : reach(reach),
        a(args),
        world(args.world),
        op(op),
        half(args.world, args.layout, op),
        row_bytes(2ll * args.call.sizes.hidden),
        local(args.call.sizes.experts / args.world.ranks),
        gather(gather) {}

  // By a warp: the rows of the piece taken up, back to its rank. `left`: of them, those whose load was not begun yet.
  __device__ void send_rows(unsigned left) {
    const Piece& piece = gather.piece;
    std::int64_t first = 0;
    if constexpr (kPorts) first = enter(piece, gather.here);
    if (gather.here == 0 || first < 0) return;
    const int bytes = gather.piece_bytes(piece.chunk);
    for (;;) {
      gather.wait_for_rows();
      if (gather.selection >= 0) {
        bulk_store(place_of(piece, first), gather.buffer.pieces[lane_id()], bytes);
      }
      bulk_commit();
      if (left == 0) break;
      bulk_wait_read<0>();
      __syncwarp();
      gather.load_rows(left);
    }
    bulk_wait<0>();
    __syncwarp();
    raise_flag(piece);
  }

  // By a warp: their sum, to its rank, or into the own segment, without a flag.
  __device__ void send_sum(const Rounded& sum, bool with_flag) {
    const Piece& piece = gather.piece;
    if constexpr (kPorts) {
      if (reach.far(piece.source)) {
        const std::int64_t slot = enter(piece, gather.here == 0 ? 0 : 1);
        if (slot >= 0) gather.write(reach.piece(reach.outgoing(half, piece.source), slot), sum, piece.chunk);
        return;
      }
    }
    if (gather.here == 0) return;
    gather.write(half.at(piece.source, sum_at(world.rank, piece.token, piece.chunk)), sum, piece.chunk);
    __syncwarp();
    if (with_flag) raise_flag(piece);
  }

  // By a warp: the token's selections, which have come back, as one piece of the result.
  __device__ void reduce_rows(int token, int chunk, bool own_in_place) {
    const std::int64_t index = static_cast<std::int64_t>(token) * a.call.topk + lane_id();
    const std::int64_t expert = lane_id() < a.call.topk ? a.in.topk[index] : -1;
    const bool dispatched = (a.map.sent[2 * token + 1] >> lane_id() & 1) != 0;
    const bool wrong = expert < -1 || expert >= a.call.sizes.experts || (expert >= 0 && !dispatched);
    if (wrong) fail_wrong_value(world, op.phase, expert, index);
    if (__any_sync(kAll, wrong)) return;
    const int owner = expert >= 0 ? static_cast<int>(expert) / local : -1;
    // All that were sent, also those masked since: nothing comes any more when the operation has ended.
    const std::uint64_t awaited = a.map.sent[2 * token] & (own_in_place ? ~(1ull << world.rank) : ~0ull);
    const std::int64_t own_row = own_in_place && owner == world.rank ? gather.row_here(world.rank, token) : -1;
    const float weight = expert >= 0 ? a.in.weights[index] : 0.0f;
    if (!await(awaited, token, chunk)) return;
    const std::byte* from = owner < 0      ? nullptr
                            : own_row >= 0 ? gather.input(own_row, chunk)
                                           : half.at(world.rank, selection_at(token, lane_id(), chunk));
    if constexpr (kPorts) {
      if (owner >= 0 && reach.far(owner)) from = reach.entered(half, owner, table_at(token, chunk), lane_id());
      // Only of a rank whose map is not that of the dispatch.
      const bool absent = owner >= 0 && from == nullptr;
      if (absent) fail_wrong_value(world, op.phase, expert, index);
      if (__any_sync(kAll, absent)) return;
    }
    const auto address = reinterpret_cast<std::uintptr_t>(from);
    Sum sum;
    sum.clear();
    gather.add_pieces(
        sum, __ballot_sync(kAll, owner >= 0), chunk,
        [&](int k) { return reinterpret_cast<const std::byte*>(__shfl_sync(kAll, address, k)); },
        [&](int k) { return __shfl_sync(kAll, weight, k); });
    gather.write(a.out + token * row_bytes + chunk * a.chunks.columns * 2, sum.rounded(), chunk);
  }

  // By a warp: the ranks' sums for the token, in rank order, as one piece of the result. The own one is where the
  // others' are.
  __device__ void reduce_sums(int token, int chunk, bool own_has_come) {
    const std::uint64_t ranks = a.map.sent[2 * token];
    const std::uint64_t self = 1ull << world.rank;
    if (!await(own_has_come ? ranks & ~self : ranks, token, chunk)) return;
    Sum sum;
    sum.clear();
    for (int part = 0; part < 2; ++part) {
      gather.add_pieces(
          sum, static_cast<unsigned>(ranks >> (32 * part)), chunk,
          [&](int bit) -> const std::byte* {
            if constexpr (kPorts) {
              if (reach.far(32 * part + bit)) {
                const std::byte* from = reach.entered(half, 32 * part + bit, table_at(token, chunk), 0);
                if (from != nullptr) return from;
                if (lane_id() == 0) fail_wrong_value(world, op.phase, -1, token);
              }
            }
            return half.at(world.rank, sum_at(32 * part + bit, token, chunk));
          },
          [](int) { return 1.0f; });
    }
    gather.write(a.out + token * row_bytes + chunk * a.chunks.columns * 2, sum.rounded(), chunk);
  }

  // By a warp, once it has sent all of its units: its part of what other nodes get is done.
  __device__ void post(unsigned* posted) const { reach.post(half, op, posted); }

 private:
  __device__ std::int64_t table_at(int token, int chunk) const {
    return static_cast<std::int64_t>(token) * a.chunks.count + chunk;
  }
  // By a warp: room in the message for the rows of a piece that goes to another node; 0 for one of this node.
  __device__ std::int64_t enter(const Piece& piece, unsigned rows) const {
    if (reach.near(piece.source)) return 0;
    std::int64_t first = 0;
    if (lane_id() == 0) first = reach.enter(half, piece.source, table_at(piece.token, piece.chunk), rows);
    return __shfl_sync(kAll, first, 0);
  }
  // Where the lane's row of a piece goes.
  __device__ std::byte* place_of(const Piece& piece, std::int64_t first) const {
    if constexpr (kPorts) {
      if (reach.far(piece.source)) {
        const int nth = __popc(gather.here & ((1u << gather.selection) - 1));
        return reach.piece(reach.outgoing(half, piece.source), first + nth);
      }
    }
    return half.at(piece.source, selection_at(piece.token, gather.selection, piece.chunk));
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
  __device__ void raise_flag(const Piece& piece) {
    if (!reach.near(piece.source)) return;
    if (lane_id() == 0) store_release(flag(piece.source, world.rank, piece.token, piece.chunk), op.epoch);
  }

  // Waits for these ranks' pieces of a token; false when one did not come.
  __device__ bool await(std::uint64_t ranks, int token, int chunk) {
    bool there = true;
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if ((ranks >> peer & 1) == 0) continue;
      if constexpr (kPorts) {
        if (reach.far(peer)) {
          there = there && reach.await(half, op, peer);
          continue;
        }
      }
      there = there && wait_for_epoch(world, op, peer, flag(world.rank, peer, token, chunk));
    }
    __syncwarp();
    return __all_sync(kAll, there);
  }

  const ReachOf<kPorts>& reach;
  const CombineArgs<kPorts>& a;
  const World& world;
  const Operation op;
  const Half half;
  const std::int64_t row_bytes;
  const int local;
  Gather& gather;
};

template <bool kLocalReduce, bool kPorts>
__global__ void __launch_bounds__(kThreads, 1) ep_ll_combine(const __grid_constant__ CombineArgs<kPorts> a) {
  extern __shared__ __align__(128) std::byte dynamic[];
  __shared__ __align__(8) std::uint64_t barriers[kWarps];
  __shared__ __align__(8) std::uint64_t begins;
  __shared__ Operation shared_op;
  __shared__ MessagesShared<kPorts> messages;
  const ReachOf<kPorts> reach = Reach<kPorts>::of(a);
  const bool sends = (a.call.parts & kSend) != 0;
  const bool receives = (a.call.parts & kReceive) != 0;
  const int chunks = a.chunks.count;
  const int sources = receives ? a.world.ranks - 1 : a.world.ranks;
  const int to_send = sends ? a.call.sizes.max_tokens * sources * chunks : 0;
  const int to_reduce = receives ? a.call.tokens * chunks : 0;
  const auto sent_piece = [&](int unit) {
    const int nth = unit / chunks % sources;
    return Piece{receives ? (a.world.rank + 1 + nth) % a.world.ranks : nth, unit / chunks / sources, unit % chunks};
  };
  if (threadIdx.x == 0) {
    barrier_init(&begins);
    if constexpr (kPorts) messages = {};
  }
  if (lane_id() == 0) {
    barrier_init(&barriers[warp_id()]);
    barrier_init_fence();
  }
  __syncthreads();
  if (tells()) tell_early(a.world, a.call, reach);
  if (warp_id() == kWarps - 1) {
    const Operation begun = begin_call(a.world, a.call, Phase::combine, reach);
    if (lane_id() == 0) {
      shared_op = begun;
      barrier_arrive(&begins);
    }
  }

  Gather gather(a, reinterpret_cast<WarpBuffer*>(dynamic)[warp_id()], &barriers[warp_id()]);
  bool begun = false;
  bool sending = true;
  bool posted = !kPorts || !sends;
  for (int unit = first_unit();; unit += unit_stride()) {
    if (sending && unit >= to_send) {
      sending = false;
      unit = last_unit();
    }
    const bool any = sending || unit < to_reduce;
    const Piece piece = sending ? sent_piece(unit) : Piece{a.world.rank, unit / chunks, unit % chunks};
    const auto wait_for_operation = [&] {
      barrier_wait(&begins, 0);
      begun = true;
      if (shared_op.epoch == 0) return;
      if (tells()) tell_late(a.world, a.call, shared_op, reach);
      if (receives && blockIdx.x == 0 && warp_id() == kWarps - 1) check_alike(a.world, shared_op, reach);
    };
    // Rows to be sent are read while the operation begins; own ones later, so as not to be in their way.
    if (!begun && !sending) wait_for_operation();
    if constexpr (kPorts) {
      if (!sending && !posted && shared_op.epoch != 0)
        Combine<kPorts>(a, reach, shared_op, gather).post(&messages.posted);
      posted |= !sending;
    }
    unsigned left = 0;
    Rounded sum;
    const bool reads = any && (sending || (kLocalReduce && sends));
    if (reads) {
      gather.take(piece);
      left = gather.here;
      if constexpr (kLocalReduce) {
        sum = gather.sum_rows();
      } else if (left != 0) {
        gather.load_rows(left);
      }
    }
    if (!begun) wait_for_operation();
    if (shared_op.epoch == 0) {
      if (!kLocalReduce && reads && gather.here != 0) gather.wait_for_rows();
      break;
    }
    if (!any) break;
    Combine<kPorts> combine(a, reach, shared_op, gather);
    if constexpr (kLocalReduce) {
      if (reads) combine.send_sum(sum, sending);
      if (!sending) combine.reduce_sums(piece.token, piece.chunk, sends);
    } else if (sending) {
      combine.send_rows(left);
    } else {
      combine.reduce_rows(piece.token, piece.chunk, sends);
    }
  }
}

template <bool kLocalReduce, bool kPorts>
cudaError_t launch(const CombineArgs<kPorts>& args, int blocks, cudaStream_t stream) {
  ep_ll_combine<kLocalReduce, kPorts><<<blocks, kThreads, kLocalReduce ? 0 : kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

template <bool kPorts>
cudaError_t prepare() {
  return cudaFuncSetAttribute(ep_ll_combine<false, kPorts>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
}

}  // namespace
}  // namespace ep_core::cuda
