// High throughput's dispatch: every token once to each rank that has one of its experts.
//
// ep_ht_dispatch
// Grid: as many blocks as asked for, at most one an SM, all resident; 512 threads, 225 KiB of shared memory.
// Warps: the even ones send, the odd ones receive; 8 blocks' worth of senders share out the tokens, token t to sender
// t % senders, and as many receivers the rows of each source, row j to receiver j % receivers. See high_throughput.hpp
// for why no ring is too small.
// - A sender loads a row into shared memory once and stores it to all its places in peers' rings and, if it stays here,
//   to recv_x. Each lane stores for two destinations. What travels with a row is written beside it by ordinary stores.
// - A receiver copies a row that has arrived from the ring to recv_x and gives the place back.
// Traffic of a rank, in bytes for a row of B bytes with A bytes beside it: a token with d destinations is read once
// from x (B + A), and written d times, d - 1 of them over the link if it stays here too; a row received from a peer is
// written to the ring by the link, read from there and written to recv_x (3 times B + A, in the L2 cache where the ring
// fits).
//
// Synchronization. Flag of a place: by the lane whose bulk stores wrote the row, once they are complete, and after a
// warp barrier with the lanes that stored the rest: st.release.sys, since the reader is on another GPU. Reader:
// ld.acquire.sys by one lane, a warp barrier, fence.proxy.async by all (what follows are bulk loads, in the async
// proxy), then bulk loads and ordinary loads. Credit of a place: when all loads of the row are complete, after a warp
// barrier, st.release.sys; acquired by the sender with ld.acquire.sys and fence.proxy.async before its bulk stores;
// so are the peers' acknowledgements in `enter`.
// Nothing has gpu scope: blocks of a rank share nothing but `broken`, a hint.
#include "high_throughput.cuh"

namespace ep_core::cuda {
namespace {

constexpr int kDispatchSenders = 8;  // warps of a block

// A lane's selection of a token: expert -1 if it has none.
struct Selection {
  int expert;
  float weight;
};

// By the whole warp: selection `lane` of the token; false when it is wrong, which is then known to the host.
__device__ bool selection_of(const World& world, const HtDispatch& in, int token, std::uint64_t destinations,
                             Selection& selection) {
  const int lane = threadIdx.x % kWarp;
  selection = {-1, 0.0f};
  bool good = true;
  if (lane < in.topk_count) {
    const std::int64_t cell = static_cast<std::int64_t>(token) * in.topk_count + lane;
    const std::int64_t expert = in.topk[cell];
    selection = {static_cast<int>(expert), in.weights[cell]};
    if (expert < -1 || expert >= in.experts) {
      fail_wrong_value(world, Phase::dispatch, expert, cell);
      good = false;
    } else if (expert >= 0 && (destinations >> (expert / (in.experts / world.ranks)) & 1) == 0) {
      fail_wrong(world, Phase::dispatch, Wrong::rank, expert, cell, world.rank);
      good = false;
    }
  }
  return __all_sync(kAll, good);
}

// What one row has beside it, in its place or in the results.
template <class Index>
struct Beside {
  float* scales;
  Index* topk;
  float* weights;
  std::int32_t* token;
};

// By the whole warp.
template <class Index>
__device__ void write_beside(const Beside<Index>& to, const float* scales, int scales_count, int topk_count,
                             const Selection& local, int token) {
  const int lane = threadIdx.x % kWarp;
  for (int i = lane; i < scales_count; i += kWarp) to.scales[i] = scales[i];
  if (lane < topk_count) {
    to.topk[lane] = local.expert;
    to.weights[lane] = local.weight;
  }
  if (lane == 0 && to.token != nullptr) *to.token = token;
}

__device__ Beside<std::int32_t> beside_in_ring(std::byte* place, const PlaceLayout& at) {
  return {reinterpret_cast<float*>(place + at.scales), reinterpret_cast<std::int32_t*>(place + at.topk),
          reinterpret_cast<float*>(place + at.weights), reinterpret_cast<std::int32_t*>(place + at.token)};
}

__device__ Beside<std::int64_t> beside_in_results(const HtDispatch& out, std::int64_t row) {
  return {out.out_scales + row * out.scales_per_row, out.out_topk + row * out.topk_count,
          out.out_weights + row * out.topk_count, out.out_src_idx == nullptr ? nullptr : out.out_src_idx + row};
}

__device__ void send(const World& world, const HtDispatch& in, const PlaceLayout& at, const Ring& ring,
                     const Operation& op, RowPipe& pipe, const Worker& worker) {
  const int lane = threadIdx.x % kWarp;
  const Routing routing(world, in.in_rank, in.send_head, in.rank_prefix, in.tokens);
  Announcement pending;
  Heads next = routing.of(worker.index);
  for (int token = worker.index; token < in.tokens; token += worker.count) {
    const Heads heads = next;
    std::uint64_t destinations;
    if (!routing.check(Phase::dispatch, heads, token, destinations)) break;
    next = routing.of(token + worker.count);
    Selection selection;
    if (destinations == 0) {
      if (!selection_of(world, in, token, destinations, selection)) break;
      continue;
    }
    RowMove move(in.x + static_cast<std::int64_t>(token) * in.row_bytes, in.row_bytes);
    move.start(pipe);
    if (!selection_of(world, in, token, destinations, selection)) break;

    std::byte* to[kHalves];
    Announcement own;
    const std::uint64_t* credit[kHalves];
    std::uint64_t wanted[kHalves];
    bool ready = true;
    for (int h = 0; h < kHalves; ++h) {
      const int rank = lane + h * kWarp;
      const int position = heads.position[h];
      const int lap = position / ring.places;
      const int place = position % ring.places;
      to[h] = nullptr;
      credit[h] = nullptr;
      if (!heads.sent[h]) continue;
      if (rank == world.rank) {
        to[h] = in.out_x + (routing.own_begin + position) * in.row_bytes;
        continue;
      }
      to[h] = ring.row(rank, world.rank, place);
      own.flag[h] = ring.flag(rank, world.rank, place);
      own.word[h] = ring.word(lap);
      if (lap > 0) credit[h] = ring.credit(world.rank, rank, place);
      wanted[h] = ring.word(lap - 1);
      ready = ready && (credit[h] == nullptr || load_acquire(credit[h]) == wanted[h]);
    }
    if (!__all_sync(kAll, ready)) {
      pending.finish();
      ready = true;
      for (int h = 0; h < kHalves; ++h) {
        if (credit[h] == nullptr || !ready) continue;
        ready =
            wait_until(world, op, lane + h * kWarp, credit[h], [&](std::uint64_t value) { return value == wanted[h]; });
      }
      if (!__all_sync(kAll, ready)) break;
    }
    __syncwarp();
    if (credit[0] != nullptr || credit[1] != nullptr) proxy_fence();

    for (std::uint64_t rest = destinations; rest != 0; rest &= rest - 1) {
      const int rank = __ffsll(static_cast<long long>(rest)) - 1;
      const int first = rank * (in.experts / world.ranks);
      const int position = for_peer(heads.position, rank);
      const int local = selection.expert - first;
      const bool here = selection.expert >= 0 && local >= 0 && local < in.experts / world.ranks;
      const Selection there = here ? Selection{local, selection.weight} : Selection{-1, 0.0f};
      const float* scales = in.scales + static_cast<std::int64_t>(token) * in.scales_per_row;
      if (rank == world.rank) {
        write_beside(beside_in_results(in, routing.own_begin + position), scales, in.scales_per_row, in.topk_count,
                     there, token);
      } else {
        write_beside(beside_in_ring(ring.row(rank, world.rank, position % ring.places), at), scales, in.scales_per_row,
                     in.topk_count, there, token);
      }
    }
    move.finish(pipe, to, &pending);
    pending = own;
  }
  pipe.drain();
  pending.finish();
}

__device__ void receive(const World& world, const HtDispatch& out, const PlaceLayout& at, const Ring& ring,
                        const Operation& op, RowPipe& pipe, const Worker& worker) {
  const int lane = threadIdx.x % kWarp;
  const std::int64_t received = rows_up_to(world, out.rank_prefix, world.ranks - 1, world.rank);
  if (out.out_topk != nullptr) {
    const std::int64_t end = out.room * out.topk_count;
    const std::int64_t first = received * out.topk_count + worker.index * kWarp + lane;
    for (std::int64_t i = first; i < end; i += worker.count * kWarp) out.out_topk[i] = -1;
  }
  int begin[kHalves];
  PeerRows rows = rows_here(world, out.rank_prefix, worker, begin);
  rows.words = ring.flag(world.rank, 0, 0);
  rows.behind = 0;
  for (;;) {
    const Turn turn = next_row(ring, op, rows, [] {});
    if (turn.peer < 0) break;
    proxy_fence();
    std::byte* const place = ring.row(world.rank, turn.peer, turn.row % ring.places);
    RowMove move(place, out.row_bytes);
    move.start(pipe);
    const std::int64_t row = for_peer(begin, turn.peer) + turn.row;
    const Beside<std::int32_t> beside = beside_in_ring(place, at);
    Selection selection{-1, 0.0f};
    if (lane < out.topk_count) selection = {beside.topk[lane], beside.weights[lane]};
    write_beside(beside_in_results(out, row), beside.scales, out.scales_per_row, out.topk_count, selection,
                 *beside.token);
    std::byte* const to[kHalves] = {lane == 0 ? out.out_x + row * out.row_bytes : nullptr, nullptr};
    move.finish(pipe, to, nullptr);
    __syncwarp();
    const int count = for_peer(rows.count, turn.peer);
    if (lane == 0) ring.give_back(turn.peer, turn.row, count);
  }
  bulk_wait<0>();
}

}  // namespace

__global__ void __launch_bounds__(kHtThreads, 1)
    ep_ht_dispatch(const __grid_constant__ World world, const __grid_constant__ HtDispatch arguments,
                   const __grid_constant__ RingLayout at) {
  extern __shared__ __align__(128) std::byte memory[];
  HtShared& shared = *reinterpret_cast<HtShared*>(memory);
  if (!enter(world, Phase::dispatch, arguments.signature().packed(), shared)) return;
  if (!check_prefix(world, Phase::dispatch, Wrong::room, arguments.rank_prefix, arguments.room)) return;
  const Ring ring(world, at, shared.op);
  const Worker worker(kDispatchSenders);
  RowPipe pipe(shared);
  if (worker.sends) {
    send(world, arguments, arguments.place(), ring, shared.op, pipe, worker);
  } else {
    receive(world, arguments, arguments.place(), ring, shared.op, pipe, worker);
  }
}

cudaError_t prepare_ht_dispatch() {
  return cudaFuncSetAttribute(ep_ht_dispatch, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(HtShared));
}

cudaError_t launch_ht_dispatch(const World& world, const HtDispatch& arguments, std::int64_t ring_bytes, int sms,
                               cudaStream_t stream) {
  const RingLayout at(arguments.place().bytes, world.ranks, ring_bytes);
  if (at.places < 1) return cudaErrorInvalidValue;
  ep_ht_dispatch<<<sms, kHtThreads, sizeof(HtShared), stream>>>(world, arguments, at);
  return cudaGetLastError();
}

}  // namespace ep_core::cuda
