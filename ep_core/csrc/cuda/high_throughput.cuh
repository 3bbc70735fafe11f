// What the dispatch and combine kernels of high throughput share: a block's shared memory and beginning, moving rows
// through it, and taking the rows of several peers as they become ready.
//
// Next to read: high_throughput_routing.cuh, then high_throughput_dispatch.cu.
#pragma once

#include "high_throughput_routing.cuh"

namespace ep_core::cuda {

constexpr int kHtWarps = 16;
constexpr int kHtThreads = kHtWarps * kWarp;
constexpr int kWarpBytes = 14336;  // of shared memory, for a warp's pieces of rows
constexpr int kMostStages = 7;

struct HtShared {
  Operation op;
  std::uint64_t barriers[kHtWarps][kMostStages];
  alignas(128) std::byte stages[kHtWarps][kWarpBytes];
};

// Once for each device, and called by prepare_high_throughput.
cudaError_t prepare_ht_dispatch();
cudaError_t prepare_ht_combine();

// By all threads, first: the operation begins. False when the buffer is broken: then nothing may be moved.
__device__ inline bool enter(const World& world, Phase phase, std::uint32_t signature, HtShared& shared) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (lane < kMostStages) barrier_init(&shared.barriers[warp][lane]);
  barrier_init_fence();
  if (warp == 0) {
    const Operation op = begin(world, phase, kHighThroughput, signature, true);
    if (blockIdx.x == 0) check_alike(world, op);
    if (lane == 0) shared.op = op;
  }
  const bool good = __syncthreads_or(is_broken(world)) == 0;
  // Bulk stores into the ring come after the peers' acknowledgements.
  proxy_fence();
  return good;
}

// --- the ring ------------------------------------------------------------------------------------------------------

// Row j between two ranks: its place, and the word that stands for it in its flag and in its credit.
struct Ring {
  const World& world;
  RingLayout at;
  int places;
  std::uint32_t epoch;

  __device__ Ring(const World& world_, const RingLayout& at_, const Operation& op)
      : world(world_), at(at_), places(static_cast<int>(at_.places)), epoch(static_cast<std::uint32_t>(op.epoch)) {}

  __device__ std::uint64_t word(int lap) const { return tagged(static_cast<std::uint32_t>(lap), epoch); }
  __device__ std::byte* of(int owner) const { return world.base[owner] + world.ring; }
  // In `owner`'s segment: where `peer`'s row goes, its flag, and the credit that `peer` gives for `owner`'s row.
  __device__ std::byte* row(int owner, int peer, int place) const {
    return of(owner) + at.payload + (static_cast<std::int64_t>(peer) * places + place) * at.place_bytes;
  }
  __device__ std::uint64_t* flag(int owner, int peer, int place) const {
    return reinterpret_cast<std::uint64_t*>(of(owner) + at.flags) + static_cast<std::int64_t>(peer) * places + place;
  }
  __device__ std::uint64_t* credit(int owner, int peer, int place) const {
    return reinterpret_cast<std::uint64_t*>(of(owner) + at.credits) + static_cast<std::int64_t>(peer) * places + place;
  }
  // Of peer's row j, arrived here: gives its place back if a later row will want it.
  __device__ void give_back(int peer, int j, int count) const {
    if (j + places < count) store_release(credit(peer, world.rank, j % places), word(j / places));
  }
};

// --- moving rows ---------------------------------------------------------------------------------------------------

// A row in pieces of nearly one size that fit into `most` bytes; all but the last have `bytes`.
struct Pieces {
  int row_bytes;
  int count;
  int bytes;

  __device__ Pieces(int row_bytes_, int most) : row_bytes(row_bytes_) {
    count = (row_bytes + most - 1) / most;
    bytes = (row_bytes + count - 1) / count;
    bytes = (bytes + 15) / 16 * 16;
    count = (row_bytes + bytes - 1) / bytes;
  }
  __device__ int of(int piece) const { return piece + 1 == count ? row_bytes - piece * bytes : bytes; }
};

// A warp's part of shared memory as `kStages` pieces used in turn; piece q since the kernel's start lies in stage
// q % kStages.
template <int kPieceBytes_>
struct Pipe {
  static constexpr int kPieceBytes = kPieceBytes_;
  static constexpr int kStages = kWarpBytes / kPieceBytes;
  static_assert(kStages <= kMostStages && kPieceBytes % 128 == 0);

  std::byte* stages;
  std::uint64_t* barriers;
  std::uint32_t loaded = 0;  // pieces whose load was issued
  std::uint32_t taken = 0;   // pieces that were waited for

  __device__ explicit Pipe(HtShared& shared)
      : stages(shared.stages[threadIdx.x / kWarp]), barriers(shared.barriers[threadIdx.x / kWarp]) {}

  // By the whole warp, once the stage is free: lane 0 loads the next piece.
  __device__ void load(const std::byte* from, int bytes) {
    const std::uint32_t stage = loaded++ % kStages;
    if (threadIdx.x % kWarp != 0) return;
    barrier_expect(&barriers[stage], bytes);
    bulk_load(stages + stage * kPieceBytes, from, bytes, &barriers[stage]);
  }
  // By the whole warp: the next piece, loaded.
  __device__ const std::byte* take() {
    const std::uint32_t stage = taken % kStages;
    barrier_wait(&barriers[stage], taken / kStages & 1);
    ++taken;
    return stages + stage * kPieceBytes;
  }
  // No load may be under way when the block ends.
  __device__ void drain() {
    while (taken != loaded) take();
  }
};

// Flags of a row whose stores may still be on their way: a lane's own.
struct Announcement {
  std::uint64_t* flag[kHalves] = {nullptr, nullptr};
  std::uint64_t word[kHalves];

  // By the whole warp, when the lane's bulk stores of the row are complete. What other lanes stored beside the row is
  // ordered by the barrier, all of it before the flag by release at system scope.
  __device__ void publish() {
    __syncwarp();
    for (int h = 0; h < kHalves; ++h) {
      if (flag[h] != nullptr) store_release(flag[h], word[h]);
      flag[h] = nullptr;
    }
  }
  __device__ void finish() {
    bulk_wait<0>();
    publish();
  }
};

// Moves one row by bulk copies through a warp's stages. `start` issues the first loads; `finish` stores what arrives to
// both destinations of each lane (null: none), and publishes what is due from the row before, if anything, as late as
// makes the wait for that row's stores short. Bulk groups belong to a lane, one for each piece, in every lane.
using RowPipe = Pipe<3584>;

struct RowMove {
  static constexpr int kAhead = RowPipe::kStages - 1;
  static constexpr int kLag = 3;  // pieces of this row that are stored before the row before is announced

  const std::byte* from;
  Pieces pieces;
  int issued = 0;

  __device__ RowMove(const std::byte* from_, int row_bytes) : from(from_), pieces(row_bytes, RowPipe::kPieceBytes) {}

  __device__ void load(RowPipe& pipe) {
    // All but the last piece stored have left shared memory, so kAhead stages are free.
    bulk_wait_read<RowPipe::kStages - kAhead>();
    __syncwarp();
    pipe.load(from + issued * pieces.bytes, pieces.of(issued));
    ++issued;
  }
  __device__ void start(RowPipe& pipe) {
    while (issued < pieces.count && issued < kAhead) load(pipe);
  }
  __device__ void finish(RowPipe& pipe, std::byte* const (&to)[kHalves], Announcement* before) {
    for (int piece = 0; piece < pieces.count; ++piece) {
      const std::byte* stage = pipe.take();
      for (int h = 0; h < kHalves; ++h) {
        if (to[h] != nullptr) bulk_store(to[h] + piece * pieces.bytes, stage, pieces.of(piece));
      }
      bulk_commit();
      if (issued < pieces.count) load(pipe);
      if (before == nullptr) continue;
      if (pieces.count >= kLag) {
        if (piece + 1 == kLag) {
          bulk_wait<kLag>();
          before->publish();
        }
      } else if (piece == 0) {
        bulk_wait<1>();
        before->publish();
      }
    }
  }
};

// --- rows of several peers -----------------------------------------------------------------------------------------

// Rows that a warp moves between this rank and its peers: every `step`-th of each peer's, in order, but of whichever
// peer is ready.
struct PeerRows {
  int step;
  int next[kHalves];   // row, of the lane's peers
  int count[kHalves];  // rows
  int last;            // peer that had its turn

  // Row j waits for the word of row j - behind * places: of flags with 0, of credits with 1.
  const std::uint64_t* words;  // [peer][place], in this rank's segment
  int behind;
};

// What a warp does, and which of all warps of its role it is. `senders`: of a block's warps, spread among the others; a
// divisor of their number.
struct Worker {
  bool sends;
  int index;
  int count;

  __device__ explicit Worker(int senders) {
    const int warp = threadIdx.x / kWarp;
    const int every = kHtWarps / senders;
    sends = warp % every == 0;
    const int among = sends ? warp / every : warp - warp / every - 1;
    index = among * gridDim.x + blockIdx.x;
    count = (sends ? senders : kHtWarps - senders) * gridDim.x;
  }
};

// The rows of each peer that this rank received in dispatch, and where they begin among all that it received. `words`
// and `behind` are for the caller to say.
__device__ inline PeerRows rows_here(const World& world, const std::int32_t* rank_prefix, const Worker& worker,
                                     int (&begin)[kHalves]) {
  PeerRows rows;
  rows.step = worker.count;
  rows.last = world.rank;
  for (int h = 0; h < kHalves; ++h) {
    const int peer = threadIdx.x % kWarp + h * kWarp;
    const bool is = peer < world.ranks && peer != world.rank;
    begin[h] = is ? rows_up_to(world, rank_prefix, peer - 1, world.rank) : 0;
    rows.count[h] = is ? rows_up_to(world, rank_prefix, peer, world.rank) - begin[h] : 0;
    rows.next[h] = worker.index;
  }
  return rows;
}

struct Turn {
  int peer;  // -1: no rows are left, or a wait has failed
  int row;
};

// By the whole warp: the next row, whichever is ready. Calls `before_waiting` if none is.
template <class BeforeWaiting>
__device__ Turn next_row(const Ring& ring, const Operation& op, PeerRows& rows, const BeforeWaiting& before_waiting) {
  const World& world = ring.world;
  const int lane = threadIdx.x % kWarp;
  const std::uint64_t* word[kHalves];
  std::uint64_t wanted[kHalves];
  std::uint64_t left = 0;
  for (int h = 0; h < kHalves; ++h) {
    const bool some = rows.next[h] < rows.count[h];
    const int lap = rows.next[h] / ring.places - rows.behind;
    word[h] = some && lap >= 0
                  ? rows.words + static_cast<std::int64_t>(lane + h * kWarp) * ring.places + rows.next[h] % ring.places
                  : nullptr;
    wanted[h] = ring.word(lap);
    left |= static_cast<std::uint64_t>(__ballot_sync(kAll, some)) << (h * kWarp);
  }
  if (left == 0) return {-1, 0};
  std::uint64_t start = 0;
  std::uint64_t ready = 0;
  for (std::uint32_t spins = 0;; ++spins) {
    for (int h = 0; h < kHalves; ++h) {
      const bool is = word[h] == nullptr || load_acquire(word[h]) == wanted[h];
      ready |= static_cast<std::uint64_t>(__ballot_sync(kAll, is)) << (h * kWarp);
    }
    ready &= left;
    if (ready != 0) break;
    if (spins == 0) before_waiting();
    if ((spins & 63u) != 63u) continue;
    bool stop = false;
    if (lane == 0) {
      const std::uint64_t now = now_ns();
      if (start == 0) start = now;
      stop = is_broken(world);
      if (!stop && now - start > world.deadline_ns) {
        fail_deadline(world, op, __ffsll(static_cast<long long>(left)) - 1, now - start);
        stop = true;
      }
    }
    if (__any_sync(kAll, stop)) return {-1, 0};
  }
  const std::uint64_t after = ready & (~0ull << rows.last) << 1;
  const int peer = __ffsll(static_cast<long long>(after != 0 ? after : ready)) - 1;
  const int row = for_peer(rows.next, peer);
  for (int h = 0; h < kHalves; ++h) {
    if (lane + h * kWarp == peer) rows.next[h] += rows.step;
  }
  rows.last = peer;
  // What the lane that loaded the word acquired holds for the warp.
  __syncwarp();
  return {peer, row};
}

}  // namespace ep_core::cuda
