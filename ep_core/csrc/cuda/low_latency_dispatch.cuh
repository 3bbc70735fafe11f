// Low-latency dispatch: every token to each of its experts, into per-expert receive buffers, in the order of source
// rank, token and position in top-k. Included by low_latency_dispatch.cu, and by ports_dispatch.cu for
// buffers whose ranks are on several nodes (`kPorts`). The steps are in low_latency_dispatch_steps.cuh.
//
// Grid: one block of 16 warps on each multiprocessor that is asked for, all resident. Work is dealt to warps.
//   1. `count_positions`, `announce`: a token for each warp. Tells every rank the token's selections: expert, and
//      position among this source's rows for it (8-byte words that carry their epoch, so they need no fence).
//   2. `push`: a warp a piece of a row. Loads it into shared memory (quantises it), and stores it once for each
//      rank that has one of the token's experts, into a place of its own there; then its flag.
//   3. `count_selections`, `lay_out`: each block reads all sources' selections, and so knows where each source's
//      rows begin at each expert.
//   4. `place`, `expand`: a warp a piece of a row, own ones out of the shared memory they were sent from, others'
//      when their flag is there. Stores it into the slot of every local expert that wants it.
// Steps 3 and 4 run while the wire is busy with step 2. Nothing waits for a unit that is not dealt yet: announcing and
// pushing never wait for a peer's part in this operation, and they come first in every warp.
//
// With ranks of other nodes, what goes to one of those is put together in this rank's own segment and sent when all
// blocks have done their part (ports.cuh): so every unit of step 2 comes before any of step 3, and if a warp has
// several of them, rows that stay here take the way of the others too. What comes from them is expanded by the same
// step 4.
//
// Traffic, bytes for each token (bf16, row = 2 H): reads row; sends row + 8 K + 8 for each piece to each other rank
// with an expert of it; receives as much; reads back what was received, and writes row for each local selection.
//
// Synchronisation: `begin` (device.cuh) makes the half writable. Pieces: bulk store, completed, then st.release.sys of
// their flag in the receiver's segment, by the same lane; ld.acquire.sys there, then fence.proxy.async before the bulk
// load. Selections: st.relaxed.sys and ld.relaxed.sys of single words that hold all there is to know. Blocks of a rank
// share nothing but the ticket.
#pragma once

#include "low_latency_dispatch_steps.cuh"

namespace ep_core::cuda {
namespace {

template <bool kFp8, bool kPorts>
__global__ void __launch_bounds__(kThreads, 1) ep_ll_dispatch(const __grid_constant__ DispatchArgs<kPorts> a) {
  extern __shared__ __align__(128) std::byte dynamic[];
  __shared__ std::uint32_t cells[kMaxExperts];
  __shared__ __align__(8) std::uint64_t barriers[kWarps];
  __shared__ Operation shared_op;
  __shared__ OwnTokens own;
  __shared__ MessagesShared<kPorts> messages;
  const bool sends = (a.call.parts & kSend) != 0;
  const bool receives = (a.call.parts & kReceive) != 0;
  const int chunks = a.chunks.count;
  const int own_units = a.call.sizes.max_tokens * chunks;
  // Whether rows that stay here are taken out of the shared memory that they are sent from.
  const bool keeps = receives && (!kPorts || own_units <= unit_stride());
  const auto own_piece = [&](int unit) { return Piece{a.world.rank, unit / chunks, unit % chunks}; };
  WarpBuffer<kFp8>& buffer = reinterpret_cast<WarpBuffer<kFp8>*>(dynamic)[warp_id()];
  auto* kept = reinterpret_cast<std::uint32_t*>(dynamic + kWarps * sizeof(WarpBuffer<kFp8>));

  for (int i = threadIdx.x; i < a.call.sizes.experts; i += kThreads) cells[i] = 0;
  for (int i = threadIdx.x; i < kKept; i += kThreads) kept[i] = 0;
  if constexpr (kPorts) {
    if (threadIdx.x == 0) messages = {};
  }
  if (lane_id() == 0) {
    barrier_init(&barriers[warp_id()]);
    barrier_init_fence();
  }
  __syncwarp();
  const int first = first_unit();
  const int first_token = static_cast<int>(blockIdx.x);
  const bool begins_with_own = sends && first < own_units && own_piece(first).token < a.call.tokens;
  Operation op{};
  int expert = -1;
  {
    // While the operation begins: what needs nothing of it.
    Dispatch<kFp8, kPorts> early(a, op, buffer, &barriers[warp_id()], cells, kept);
    if (tells()) tell_early(a.world, a.call, early.reach);
    if (begins_with_own) early.load_own(own_piece(first));
    if (warp_id() == kWarps - 1) {
      const Operation begun = begin_call(a.world, a.call, Phase::dispatch, early.reach);
      if (lane_id() == 0) shared_op = begun;
    }
    if (sends) {
      expert = early.own_expert(first_token + warp_id() * static_cast<int>(gridDim.x));
      count_positions(own, a.in.topk, a.call, first_token, expert);
    }
  }
  __syncthreads();
  op = shared_op;
  if (op.epoch == 0) {
    if (begins_with_own) barrier_wait(&barriers[warp_id()], 0);
    return;
  }
  Dispatch<kFp8, kPorts> dispatch(a, op, buffer, &barriers[warp_id()], cells, kept);

  if (sends) {
    dispatch.announce(own, first_token + warp_id() * static_cast<int>(gridDim.x), expert);
    for (int token = first_token + unit_stride(); token < a.call.sizes.max_tokens; token += unit_stride()) {
      __syncthreads();
      expert = dispatch.own_expert(token + warp_id() * static_cast<int>(gridDim.x));
      count_positions(own, a.in.topk, a.call, token, expert);
      dispatch.announce(own, token + warp_id() * static_cast<int>(gridDim.x), expert);
    }
  }
  if (tells()) tell_late(a.world, a.call, op, dispatch.reach);
  if (begins_with_own) dispatch.push(own_piece(first), keeps);
  if constexpr (kPorts) {
    for (int unit = first; sends && unit < own_units; unit += unit_stride()) {
      const Piece piece = own_piece(unit);
      if (piece.token >= a.call.tokens) {
        dispatch.enter(piece, 0);
        continue;
      }
      if (unit != first) {
        bulk_wait_read<0>();
        __syncwarp();
        dispatch.load_own(piece);
        dispatch.push(piece, keeps);
      }
      bulk_wait<0>();
      dispatch.raise_flags(piece);
    }
    if (sends) dispatch.post(&messages.posted);
    if (receives) dispatch.await_messages(messages.came);
  }
  if (receives) {
    if (blockIdx.x == 0 && warp_id() == kWarps - 1) check_alike(a.world, op, dispatch.reach);
    dispatch.count_selections();
    __syncthreads();
    dispatch.lay_out();
    __syncthreads();
  }
  for (int unit = first; sends && (!kPorts || keeps) && unit < own_units; unit += unit_stride()) {
    const Piece piece = own_piece(unit);
    const bool there = piece.token < a.call.tokens;
    if (!kPorts && unit != first && there) {
      bulk_wait_read<0>();
      __syncwarp();
      dispatch.load_own(piece);
      dispatch.push(piece, keeps);
    }
    if (receives) {
      const std::int64_t row = dispatch.place(piece);
      dispatch.expand(piece, there ? row : -1);
    }
    if (kPorts || !there) continue;
    if (receives) {
      bulk_wait<1>();
    } else {
      bulk_wait<0>();
    }
    dispatch.raise_flags(piece);
  }
  if (receives) {
    const bool without_own = sends && (!kPorts || keeps);
    const int sources = without_own ? a.world.ranks - 1 : a.world.ranks;
    const int units = own_units * sources;
    for (int unit = last_unit(); unit < units; unit += unit_stride()) {
      const int nth = unit / chunks % sources;
      const Piece piece{without_own ? (a.world.rank + 1 + nth) % a.world.ranks : nth, unit / chunks / sources,
                        unit % chunks};
      const std::int64_t row = dispatch.place(piece);
      if (!__any_sync(kAll, row >= 0)) continue;
      bulk_wait_read<0>();
      __syncwarp();
      if (!dispatch.fetch(piece)) break;
      dispatch.expand(piece, row);
    }
  }
  bulk_wait<0>();
}

template <bool kFp8>
constexpr int kSharedBytes = kWarps * sizeof(WarpBuffer<kFp8>) + kKept * 4;

template <bool kFp8, bool kPorts>
cudaError_t launch(const DispatchArgs<kPorts>& args, int blocks, cudaStream_t stream) {
  ep_ll_dispatch<kFp8, kPorts><<<blocks, kThreads, kSharedBytes<kFp8>, stream>>>(args);
  return cudaGetLastError();
}

template <bool kFp8, bool kPorts>
cudaError_t prepare() {
  return cudaFuncSetAttribute(ep_ll_dispatch<kFp8, kPorts>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kSharedBytes<kFp8>);
}

}  // namespace
}  // namespace ep_core::cuda
