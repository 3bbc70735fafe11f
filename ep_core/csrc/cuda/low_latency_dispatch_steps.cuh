// The steps of low-latency dispatch and what they are given; low_latency_dispatch.cuh says what they are.
#pragma once

#include "low_latency.cuh"
#include "quantise.cuh"
#include "reach.cuh"
#include "selections.cuh"

namespace ep_core::cuda {
namespace {

template <bool kPorts>
struct DispatchArgs {
  World world;
  LowLatencyLayout layout;
  LowLatencyCall call;
  DispatchInput in;
  DispatchOutput out;
  Map map;
  Chunks chunks;
};

template <>
struct DispatchArgs<true> : DispatchArgs<false> {
  PortsGiven ports;
};

constexpr int kPieceBytes = 2 * kDispatchColumns;
constexpr int kMostBlocks = kDispatchColumns / kScaleBlock;
// Quantised: the columns, then their scales.
constexpr int kQuantisedBytes = kDispatchColumns + kMostBlocks * 4 + 64;

template <bool kFp8>
struct alignas(128) WarpBuffer {
  std::byte raw[kPieceBytes];
};
template <>
struct alignas(128) WarpBuffer<true> {
  std::byte raw[kPieceBytes];
  std::byte quantised[kQuantisedBytes];
};

// Of columns that travel quantised, with their scales: whole 16 bytes.
__host__ __device__ constexpr int quantised_bytes(int columns) {
  return columns + (columns / kScaleBlock * 4 + 15) / 16 * 16;
}

// Selections that a block keeps in shared memory, of the lowest sources and tokens; others are loaded again.
constexpr int kKept = 8192;

// A piece of a row of a source.
struct Piece {
  int source;
  int token;
  int chunk;
};

template <bool kFp8, bool kPorts>
class Dispatch {
 public:
  using Args = DispatchArgs<kPorts>;
  const ReachOf<kPorts> reach;

  __device__ Dispatch(const Args& args, const Operation& op, WarpBuffer<kFp8>& buffer, std::uint64_t* barrier,
                      std::uint32_t* cells, std::uint32_t* kept)
      : reach(Reach<kPorts>::of(args)),
        a(args),
        world(args.world),
        op(op),
        half(args.world, args.layout, op),
        local(args.call.sizes.experts / args.world.ranks),
        first_expert(args.world.rank * local),
        buffer(buffer),
        barrier(barrier),
        cells(cells),
        kept(kept) {}

  // Before the operation is known, so that nobody can be told what is wrong; `push` comes by every token.
  __device__ int own_expert(int token) const {
    return expert_of_own(token, [](std::int64_t, std::int64_t) {});
  }

  // Step 1, by a warp, when the operation has begun and positions are counted: tells every rank. Selections beyond the
  // tokens there are, and wrong ones, are told as masked.
  __device__ void announce(const OwnTokens& own, int token, int expert) {
    if (token >= a.call.sizes.max_tokens) return;
    const int topk = a.call.topk;
    const unsigned alike = __match_any_sync(kAll, expert);
    const int position = static_cast<int>(own.earlier[warp_id()][__ffs(alike) - 1]) + __popc(alike & lanes_below());
    const bool valid = expert >= 0 && position < a.call.sizes.max_tokens;
    const std::int64_t index = selection_index(world.rank, token) + lane_id();
    if (lane_id() < topk) {
      const std::uint64_t word = tagged(valid ? selection(expert, position) : 0, op.epoch);
      for (int peer = 0; peer < world.ranks; ++peer) {
        if (reach.near(peer)) store_relaxed(half.word(peer, a.layout.selections, index), word);
      }
    }
    if constexpr (kPorts) {
      // One word for both, which the semaphore announces.
      const bool weighted = valid && a.in.weights != nullptr;
      if (lane_id() < topk) {
        const float weight = weighted ? a.in.weights[static_cast<std::int64_t>(token) * topk + lane_id()] : 0.0f;
        const std::uint64_t word =
            static_cast<std::uint64_t>(valid ? selection(expert, position) : 0) << 32 | __float_as_uint(weight);
        for (std::uint64_t left = reach.remote; left != 0; left &= left - 1) {
          std::byte* const message = reach.outgoing(half, __ffsll(static_cast<long long>(left)) - 1);
          *reach.selection(message, static_cast<std::int64_t>(token) * topk + lane_id()) = word;
        }
      }
    }
    if (a.map.weights != nullptr && lane_id() < topk) {
      const float weight = valid ? a.in.weights[static_cast<std::int64_t>(token) * topk + lane_id()] : 0.0f;
      for (int peer = 0; peer < world.ranks; ++peer) {
        if (!reach.near(peer)) continue;
        store_relaxed(half.word(peer, a.layout.weights, index), tagged(__float_as_uint(weight), op.epoch));
      }
    }
    if (expert >= 0 && !valid) fail_wrong_value(world, op.phase, expert, -1);
    const std::uint64_t ranks = ranks_named(valid ? expert / local : -1);
    const unsigned selected = __ballot_sync(kAll, valid);
    if (lane_id() == 0 && token < a.call.tokens) {
      a.map.sent[2 * token] = ranks;
      a.map.sent[2 * token + 1] = selected;
    }
  }

  // Begins to load a piece of an own row; the buffer is free.
  __device__ void load_own(const Piece& piece) {
    if (lane_id() != 0) return;
    const int columns = a.chunks.of(piece.chunk, a.call.sizes.hidden);
    const std::int64_t at =
        static_cast<std::int64_t>(piece.token) * a.call.sizes.hidden + piece.chunk * a.chunks.columns;
    proxy_fence();
    barrier_expect(barrier, 2 * columns);
    bulk_load(buffer.raw, static_cast<const std::byte*>(a.in.x) + 2 * at, 2 * columns, barrier);
  }

  // Step 2, by a warp: sends the piece that is being loaded. The caller raises the flags later. keeps: what stays here
  // is expanded out of the buffer.
  __device__ void push(const Piece& piece, bool keeps) {
    const int expert = checked_expert(piece.token);
    targets = ranks_named(expert >= 0 ? expert / local : -1);
    if (kPorts ? keeps : (a.call.parts & kReceive) != 0) targets &= ~(1ull << world.rank);
    if constexpr (kPorts) enter(piece, targets);
    barrier_wait(barrier, parity);
    parity ^= 1;
    const int columns = a.chunks.of(piece.chunk, a.call.sizes.hidden);
    if constexpr (kFp8) {
      quantise(buffer.raw, buffer.quantised, columns, a.in.round_scale);
      proxy_fence();
      __syncwarp();
    }
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if ((targets >> peer & 1) == 0 || !reach.near(peer)) continue;
      bulk_store(half.at(peer, staged(piece)), travelling(), travelling_bytes(columns));
    }
    if constexpr (kPorts) {
#pragma unroll
      for (int part = 0; part < kMaxRanks / kWarp; ++part) {
        if (places[part] < 0) continue;
        bulk_store(reach.piece(reach.outgoing(half, lane_id() + part * kWarp), places[part]), travelling(),
                   travelling_bytes(columns));
      }
    }
    bulk_commit();
  }

  // By a warp: tells every rank of another node where its message has the piece; `goes`: the ranks it goes to.
  __device__ void enter(const Piece& piece, std::uint64_t goes) {
#pragma unroll
    for (int part = 0; part < kMaxRanks / kWarp; ++part) {
      const int peer = lane_id() + part * kWarp;
      const bool is = peer < world.ranks && reach.far(peer);
      places[part] = is ? reach.enter(half, peer, table_at(piece), goes >> peer & 1) : -1;
    }
  }

  // The pushes of this lane are complete: says so to whom they went.
  __device__ void raise_flags(const Piece& piece) {
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if ((targets >> peer & 1) == 0 || !reach.near(peer)) continue;
      store_release(half.flag(peer, row_of(piece), piece.chunk), op.epoch);
    }
  }

  // By a warp, when its pushes are complete: its part of what other nodes get is done.
  __device__ void post(unsigned* posted) const { reach.post(half, op, posted); }

  // By a block: waits for what other nodes send; afterwards `came` has a bit for each that did.
  __device__ void await_messages(std::uint64_t& came) {
    const int peer = static_cast<int>(threadIdx.x);
    if (peer < world.ranks && reach.far(peer) && reach.await(half, op, peer)) {
      atomicOr(reinterpret_cast<unsigned long long*>(&came), 1ull << peer);
    }
    __syncthreads();
    there = came;
  }

  // Step 3, by a block: counts every source's rows for each local expert.
  __device__ void count_selections() {
    constexpr int kBatch = 8;
    const auto per_source = static_cast<unsigned>(a.call.sizes.max_tokens * a.call.topk);
    const std::int64_t all = static_cast<std::int64_t>(per_source) * world.ranks;
    const std::uint64_t* words = half.word(world.rank, a.layout.selections, 0);
    for (std::int64_t begin = threadIdx.x; begin < all; begin += kThreads * kBatch) {
      std::uint64_t found[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const std::int64_t at = begin + i * kThreads;
        if constexpr (kPorts) {
          const int source = static_cast<int>(static_cast<unsigned>(at) / per_source);
          if (at < all && reach.far(source)) {
            found[i] = message_word(source, at - static_cast<std::int64_t>(source) * per_source);
            continue;
          }
        }
        if (at < all) found[i] = load_relaxed(words + at);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const std::int64_t at = begin + i * kThreads;
        if (at >= all) continue;
        const int source = static_cast<int>(static_cast<unsigned>(at) / per_source);
        const auto arrived = [&] {
          found[i] = load_relaxed(words + at);
          return is_of(found[i], op.epoch);
        };
        if (reach.near(source) && !is_of(found[i], op.epoch) && !poll(world, op, source, arrived)) continue;
        if (at < kKept) kept[at] = value_of(found[i]);
        const int expert = expert_of(value_of(found[i])) - first_expert;
        if (expert >= 0 && expert < local) atomicAdd(&cells[source * local + expert], 1u);
      }
    }
  }

  // Likewise: counts become the slot where each source begins. Blocks share the writing of what the caller gets.
  __device__ void lay_out() {
    for (int expert = threadIdx.x; expert < local; expert += kThreads) {
      const bool writes = expert % gridDim.x == blockIdx.x;
      std::uint32_t begin = 0;
      for (int source = 0; source < world.ranks; ++source) {
        std::uint32_t& cell = cells[source * local + expert];
        const std::uint32_t rows = cell;
        cell = begin;
        if (writes) {
          a.out.layout_range[expert * world.ranks + source] =
              static_cast<std::int64_t>(static_cast<std::uint64_t>(begin) << 32 | rows);
        }
        begin += rows;
      }
      if (!writes) continue;
      a.out.count[expert] = static_cast<std::int32_t>(begin);
      if (a.out.stats != nullptr) a.out.stats[expert] += static_cast<std::int32_t>(begin);
    }
  }

  // By a warp: lane k's row for selection k of a token, -1 where it is not here; with a row's first piece also tells
  // src_info and the map.
  __device__ std::int64_t place(const Piece& piece) {
    const int topk = a.call.topk;
    std::int64_t row = -1;
    if (lane_id() < topk) {
      const std::int64_t index = selection_index(piece.source, piece.token) + lane_id();
      const std::uint32_t told = selection_told(piece.source, index);
      const int expert = expert_of(told) - first_expert;
      if (expert >= 0 && expert < local) {
        // Of ranks that do not call alike, a slot may lie anywhere.
        const std::int64_t slot = cells[piece.source * local + expert] + position_of(told);
        if (slot < slots()) row = expert * slots() + slot;
      }
      if (piece.chunk == 0) {
        a.map.rows[index] = static_cast<std::int32_t>(row);
        if (kPorts && a.map.weights != nullptr && row >= 0 && !reach.near(piece.source)) {
          const std::uint64_t word = message_word(piece.source, index - selection_index(piece.source, 0));
          a.map.weights[index] = __uint_as_float(static_cast<std::uint32_t>(word));
        } else if (a.map.weights != nullptr && row >= 0) {
          const std::uint64_t* from = half.word(world.rank, a.layout.weights, index);
          wait_for_epoch(world, op, piece.source, from);
          a.map.weights[index] = __uint_as_float(value_of(load_relaxed(from)));
        }
        if (row >= 0) a.out.src_info[row] = piece.token;
      }
    }
    return row;
  }

  // Step 4, by a warp: stores the piece in the buffer into the rows of its lanes.
  __device__ void expand(const Piece& piece, std::int64_t row) {
    const int hidden = a.call.sizes.hidden;
    const int columns = a.chunks.of(piece.chunk, hidden);
    const std::int64_t width = kFp8 ? 1 : 2;
    if (row >= 0) {
      bulk_store(a.out.x + (row * hidden + piece.chunk * a.chunks.columns) * width, travelling(),
                 static_cast<std::uint32_t>(columns * width));
    }
    bulk_commit();
    if constexpr (kFp8) {
      for (unsigned left = __ballot_sync(kAll, row >= 0); left != 0; left &= left - 1) {
        write_scales(piece, __shfl_sync(kAll, row, __ffs(left) - 1), columns);
      }
    }
  }

  // By a warp: loads a piece that a peer pushes, once it is there. False: it did not come.
  __device__ bool fetch(const Piece& piece) {
    bool there = true;
    if (lane_id() == 0) {
      const std::byte* entered = nullptr;
      if constexpr (kPorts) {
        if (reach.far(piece.source)) entered = reach.entered(half, piece.source, table_at(piece), 0);
      }
      there = reach.near(piece.source)
                  ? wait_for_epoch(world, op, piece.source, half.flag(world.rank, row_of(piece), piece.chunk))
                  : entered != nullptr;
      if (there) {
        const int bytes = travelling_bytes(a.chunks.of(piece.chunk, a.call.sizes.hidden));
        proxy_fence();
        barrier_expect(barrier, bytes);
        bulk_load(travelling(), reach.near(piece.source) ? half.at(world.rank, staged(piece)) : entered, bytes,
                  barrier);
      }
    }
    there = __shfl_sync(kAll, there, 0);
    if (!there) return false;
    barrier_wait(barrier, parity);
    parity ^= 1;
    return true;
  }

 private:
  // Of a rank of another node whose message is there: selection << 32 | weight; 0 when it never came.
  __device__ std::uint64_t message_word(int source, std::int64_t index) const {
    if constexpr (kPorts) {
      return (there >> source & 1) == 0 ? 0 : load_relaxed(reach.selection(reach.incoming(half, source), index));
    } else {
      return 0;
    }
  }
  // A selection that every thread of the block has seen arrive; 0 when it never did.
  __device__ std::uint32_t selection_told(int source, std::int64_t index) const {
    if (index < kKept) return kept[index];
    if (!reach.near(source)) return value_of(message_word(source, index - selection_index(source, 0)));
    const std::uint64_t word = load_relaxed(half.word(world.rank, a.layout.selections, index));
    return is_of(word, op.epoch) ? value_of(word) : 0;
  }
  __device__ std::int64_t slots() const { return static_cast<std::int64_t>(world.ranks) * a.call.sizes.max_tokens; }
  __device__ std::int64_t row_of(const Piece& piece) const {
    return static_cast<std::int64_t>(piece.source) * a.call.sizes.max_tokens + piece.token;
  }
  __device__ std::int64_t selection_index(int source, int token) const {
    return (static_cast<std::int64_t>(source) * a.call.sizes.max_tokens + token) * a.call.topk;
  }
  __device__ std::byte* travelling() const {
    if constexpr (kFp8) {
      return buffer.quantised;
    } else {
      return buffer.raw;
    }
  }
  // Of a piece of so many columns, as it travels.
  __device__ int travelling_bytes(int columns) const { return kFp8 ? quantised_bytes(columns) : 2 * columns; }
  __device__ std::int64_t staged(const Piece& piece) const {
    return row_of(piece) * a.layout.stage_bytes +
           static_cast<std::int64_t>(piece.chunk) * travelling_bytes(a.chunks.columns);
  }

  __device__ std::int64_t table_at(const Piece& piece) const {
    return static_cast<std::int64_t>(piece.token) * a.chunks.count + piece.chunk;
  }

  __device__ static unsigned lanes_below() { return (1u << lane_id()) - 1; }

  // Lane k's expert of an own token, -1 where it is masked, absent or wrong, for which on_wrong(expert, flat index).
  template <class OnWrong>
  __device__ int expert_of_own(int token, const OnWrong& on_wrong) const {
    if (token >= a.call.tokens || lane_id() >= a.call.topk) return -1;
    const std::int64_t at = static_cast<std::int64_t>(token) * a.call.topk + lane_id();
    const std::int64_t expert = a.in.topk[at];
    if (expert >= -1 && expert < a.call.sizes.experts) return static_cast<int>(expert);
    on_wrong(expert, at);
    return -1;
  }
  __device__ int checked_expert(int token) const {
    return expert_of_own(token,
                         [&](std::int64_t expert, std::int64_t at) { fail_wrong_value(world, op.phase, expert, at); });
  }

  __device__ void write_scales(const Piece& piece, std::int64_t row, int columns) {
    const auto* scales = reinterpret_cast<const float*>(travelling() + columns);
    const std::int64_t expert = row / slots();
    const std::int64_t slot = row % slots();
    const int blocks = a.call.sizes.hidden / kScaleBlock;
    const int lane = lane_id();
    if (lane >= columns / kScaleBlock) return;
    const int block = piece.chunk * a.chunks.columns / kScaleBlock + lane;
    if (a.in.ue8m0) {
      const std::int64_t word = (expert * (blocks / 4) + block / 4) * slots() + slot;
      a.out.scales[word * 4 + block % 4] = static_cast<std::byte>(__float_as_uint(scales[lane]) >> 23);
    } else {
      reinterpret_cast<float*>(a.out.scales)[(expert * blocks + block) * slots() + slot] = scales[lane];
    }
  }

  const Args& a;
  const World& world;
  const Operation op;
  const Half half;
  const int local;
  const int first_expert;
  WarpBuffer<kFp8>& buffer;
  std::uint64_t* barrier;
  std::uint32_t* cells;  // [source][local expert]: rows, then where they begin
  std::uint32_t* kept;   // the first kKept selections that were told
  std::uint32_t parity = 0;
  std::uint64_t targets = 0;               // of the piece pushed last
  std::int64_t places[kMaxRanks / kWarp];  // of the piece entered last, in the messages for the lane's ranks; -1: none
  std::uint64_t there = 0;                 // ranks of other nodes whose message has come
};

}  // namespace
}  // namespace ep_core::cuda
