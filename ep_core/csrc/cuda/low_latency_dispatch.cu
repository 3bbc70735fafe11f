// Low-latency dispatch: every token to each of its experts, into per-expert receive buffers, in the order of source
// rank, token and position in top-k.
//
// Grid: one block of 16 warps on each multiprocessor that is asked for, all resident. Work is dealt to warps.
//   1. `count_positions`, `announce`: a token at a time for each warp. Tells every rank the token's selections: expert
//   and
//      position among this source's rows for that expert (8-byte words that carry their epoch, so they need no fence).
//   2. `push`: a warp a piece of a row. Loads it into shared memory (quantises it), and stores it once for each rank
//      that has one of the token's experts, into a place of its own there; then its flag.
//   3. `collect`: each block reads all sources' selections and so knows where each source's rows begin at each expert.
//   4. `expand`: a warp a piece of a row, own ones out of the shared memory they were sent from, others' when their
//   flag
//      is there. Stores it into the slot of every local expert that wants it.
// Steps 3 and 4 run while the wire is busy with step 2. Nothing waits for a unit that is not dealt yet: announcing and
// pushing never wait for a peer's part in this operation, and they come first in every warp.
//
// Traffic, bytes for each token (bf16, row = 2 H): reads row; sends row + 8 K + 8 for each piece to each other rank
// with an expert of it; receives as much; reads back what was received, and writes row for each local selection.
//
// Synchronisation: `begin` (device.cuh) makes the half writable. Pieces: bulk store, completed, then st.release.sys of
// their flag in the receiver's segment, by the same lane; ld.acquire.sys there, then fence.proxy.async before the bulk
// load. Selections: st.relaxed.sys and ld.relaxed.sys of single words that hold all there is to know. Blocks of a rank
// share nothing but the ticket.
#include "low_latency.cuh"

namespace ep_core::cuda {
namespace {

struct DispatchArgs {
  World world;
  LowLatencyLayout layout;
  LowLatencyCall call;
  DispatchInput in;
  DispatchOutput out;
  Map map;
  Chunks chunks;
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

// Selections that a block keeps in shared memory, of the lowest sources and tokens; others are loaded again.
constexpr int kKept = 8192;

// A selection as it is announced: valid, expert, position.
__device__ std::uint32_t selection(int expert, int position) {
  return 1u << 31 | static_cast<std::uint32_t>(expert) << kPackBits | static_cast<std::uint32_t>(position);
}
__device__ int expert_of(std::uint32_t selection) {
  return (selection >> 31) == 0 ? -1 : static_cast<int>(selection >> kPackBits & (2 * kMaxExperts - 1));
}
__device__ int position_of(std::uint32_t selection) { return static_cast<int>(selection & (kMostTokens - 1)); }

// The scale of 128 columns and what to multiply them by; see docs/ep_core.md, "fp8".
__device__ float2 block_scale(std::uint32_t largest, bool round_scale) {
  const float amax = __uint_as_float(largest << 16);
  const float floored = amax < 1e-4f ? 1e-4f : amax;
  const float scale = __fdiv_rn(floored, 448.0f);
  const float multiplier = __fdiv_rn(448.0f, floored);
  if (!round_scale) return {scale, multiplier};
  const std::uint32_t bits = __float_as_uint(scale);
  if (bits >= 0x7f800000u) return {floored, multiplier};
  const float power = __uint_as_float((bits + 0x7fffffu) & 0x7f800000u);
  return {power, __fdiv_rn(1.0f, power)};
}

__device__ std::uint32_t pack_e4m3(std::uint32_t pair, float multiplier) {
  const float low = __fmul_rn(__uint_as_float(pair << 16), multiplier);
  const float high = __fmul_rn(__uint_as_float(pair & 0xffff0000u), multiplier);
  std::uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

// By a warp: bf16 columns to e4m3 with a float32 scale for each 128, behind the columns. 16 lanes take a block of 128.
__device__ void quantise(const std::byte* raw, std::byte* to, int columns, bool round_scale) {
  const int blocks = columns / kScaleBlock;
  auto* scales = reinterpret_cast<float*>(to + columns);
  for (int pair = 0; pair < blocks; pair += 2) {
    const int block = pair + lane_id() / 16;
    const bool active = block < blocks;
    const int column = block * kScaleBlock + lane_id() % 16 * 8;
    uint4 value{};
    if (active) value = *reinterpret_cast<const uint4*>(raw + 2 * column);
    const std::uint32_t sizes = 0x7fff7fffu;
    const std::uint32_t top =
        __vmaxu2(__vmaxu2(value.x & sizes, value.y & sizes), __vmaxu2(value.z & sizes, value.w & sizes));
    std::uint32_t largest = max(top & 0xffffu, top >> 16);
    for (int step = 8; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(kAll, largest, step));
    const float2 scale = block_scale(largest, round_scale);
    if (!active) continue;
    const std::uint32_t first = pack_e4m3(value.x, scale.y) | pack_e4m3(value.y, scale.y) << 16;
    const std::uint32_t second = pack_e4m3(value.z, scale.y) | pack_e4m3(value.w, scale.y) << 16;
    *reinterpret_cast<uint2*>(to + column) = {first, second};
    if (lane_id() % 16 == 0) scales[block] = scale.x;
  }
}

// The tokens that a block announces at a time, one for each warp.
struct OwnTokens {
  std::uint32_t earlier[kWarps][kMaxTopk];  // [k]: selections by earlier tokens of the expert whose first place is k
  std::int8_t first[kWarps][kMaxExperts];   // [expert]: its first place in the token's top-k, or -1
};

// A piece of a row of a source.
struct Piece {
  int source;
  int token;
  int chunk;
};

template <bool kFp8>
class Dispatch {
 public:
  __device__ Dispatch(const DispatchArgs& args, const Operation& op, WarpBuffer<kFp8>& buffer, std::uint64_t* barrier,
                      std::uint32_t* cells, std::uint32_t* kept)
      : a(args),
        world(args.world),
        op(op),
        half(args.world, args.layout, op),
        local(args.call.sizes.experts / args.world.ranks),
        first_expert(args.world.rank * local),
        buffer(buffer),
        barrier(barrier),
        cells(cells),
        kept(kept) {}

  // Step 1, by a block: for each token dealt to it (one to each warp at a time), how many selections of earlier tokens
  // of this rank have each expert that the token selects. Needs nothing of the operation.
  // Returns lane k's expert of the warp's token, -1 where it is masked, absent or wrong.
  __device__ int count_positions(OwnTokens& own, int first_token) {
    constexpr int kAhead = 4;
    const int topk = a.call.topk;
    const int stride = static_cast<int>(gridDim.x);
    const int left = max(a.call.tokens - first_token, 0);
    const int tokens = min(kWarps, (left + stride - 1) / stride);
    const std::int64_t end = tokens == 0 ? 0 : static_cast<std::int64_t>(first_token + (tokens - 1) * stride) * topk;
    std::int64_t ahead[kAhead];
    const auto load = [&](std::int64_t begin) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const std::int64_t at = begin + i * kThreads + threadIdx.x;
        ahead[i] = at < end ? a.in.topk[at] : -1;
      }
    };
    load(0);
    const int mine = first_token + warp_id() * stride;
    const int expert = own_expert(mine);
    const int words = tokens * kMaxExperts / 4;
    for (int i = threadIdx.x; i < words; i += kThreads) reinterpret_cast<std::uint32_t*>(own.first)[i] = kAll;
    own.earlier[warp_id()][lane_id()] = 0;
    __syncthreads();
    const unsigned alike = __match_any_sync(kAll, expert);
    if (expert >= 0 && __ffs(alike) - 1 == lane_id())
      own.first[warp_id()][expert] = static_cast<std::int8_t>(lane_id());
    __syncthreads();
    for (std::int64_t begin = 0; begin < end; begin += kAhead * kThreads) {
      if (begin > 0) load(begin);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (ahead[i] < 0 || ahead[i] >= a.call.sizes.experts) continue;
        const std::int64_t at = begin + i * kThreads + threadIdx.x;
        for (int nth = 0; nth < tokens; ++nth) {
          const int place = own.first[nth][ahead[i]];
          const bool earlier = at < static_cast<std::int64_t>(first_token + nth * stride) * topk;
          if (place >= 0 && earlier) atomicAdd(&own.earlier[nth][place], 1u);
        }
      }
    }
    __syncthreads();
    return expert;
  }

  // Likewise, by a warp, when the operation has begun: tells every rank. Selections beyond the tokens there are, and
  // wrong ones, are told as masked.
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
        store_relaxed(half.word(peer, a.layout.selections, index), word);
      }
    }
    if (a.map.weights != nullptr && lane_id() < topk) {
      const float weight = valid ? a.in.weights[static_cast<std::int64_t>(token) * topk + lane_id()] : 0.0f;
      for (int peer = 0; peer < world.ranks; ++peer) {
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

  // Step 2, by a warp: sends the piece that is being loaded. The caller raises the flags later.
  __device__ void push(const Piece& piece) {
    const int expert = checked_expert(piece.token);
    targets = ranks_named(expert >= 0 ? expert / local : -1);
    if ((a.call.parts & kReceive) != 0) targets &= ~(1ull << world.rank);
    barrier_wait(barrier, parity);
    parity ^= 1;
    const int columns = a.chunks.of(piece.chunk, a.call.sizes.hidden);
    if constexpr (kFp8) {
      quantise(buffer.raw, buffer.quantised, columns, a.in.round_scale);
      proxy_fence();
      __syncwarp();
    }
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if ((targets >> peer & 1) == 0) continue;
      bulk_store(half.at(peer, staged(piece)), travelling(), travelling_bytes(columns));
    }
    bulk_commit();
  }

  // The pushes of this lane are complete: says so to whom they went.
  __device__ void raise_flags(const Piece& piece) {
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if ((targets >> peer & 1) == 0) continue;
      store_release(half.flag(peer, row_of(piece), piece.chunk), op.epoch);
    }
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
        if (!is_of(found[i], op.epoch) && !poll(world, op, source, arrived)) continue;
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
      const std::uint32_t told = selection_told(index);
      const int expert = expert_of(told) - first_expert;
      if (expert >= 0 && expert < local) {
        // Of ranks that do not call alike, a slot may lie anywhere.
        const std::int64_t slot = cells[piece.source * local + expert] + position_of(told);
        if (slot < slots()) row = expert * slots() + slot;
      }
      if (piece.chunk == 0) {
        a.map.rows[index] = static_cast<std::int32_t>(row);
        if (a.map.weights != nullptr && row >= 0) {
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
      there = wait_for_epoch(world, op, piece.source, half.flag(world.rank, row_of(piece), piece.chunk));
      if (there) {
        const int bytes = travelling_bytes(a.chunks.of(piece.chunk, a.call.sizes.hidden));
        proxy_fence();
        barrier_expect(barrier, bytes);
        bulk_load(travelling(), half.at(world.rank, staged(piece)), bytes, barrier);
      }
    }
    there = __shfl_sync(kAll, there, 0);
    if (!there) return false;
    barrier_wait(barrier, parity);
    parity ^= 1;
    return true;
  }

 private:
  // A selection that every thread of the block has seen arrive; 0 when it never did.
  __device__ std::uint32_t selection_told(std::int64_t index) const {
    if (index < kKept) return kept[index];
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
  // Of a piece of so many columns, as it travels: whole 16 bytes.
  __device__ int travelling_bytes(int columns) const {
    return kFp8 ? columns + (columns / kScaleBlock * 4 + 15) / 16 * 16 : 2 * columns;
  }
  __device__ std::int64_t staged(const Piece& piece) const {
    return row_of(piece) * a.layout.stage_bytes +
           static_cast<std::int64_t>(piece.chunk) * travelling_bytes(a.chunks.columns);
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
  // Before the operation is known, so that nobody can be told what is wrong; `push` comes by every token.
  __device__ int own_expert(int token) const {
    return expert_of_own(token, [](std::int64_t, std::int64_t) {});
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

  const DispatchArgs& a;
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
  std::uint64_t targets = 0;  // of the piece pushed last
};

template <bool kFp8>
__global__ void __launch_bounds__(kThreads, 1) ep_ll_dispatch(const __grid_constant__ DispatchArgs a) {
  extern __shared__ __align__(128) std::byte dynamic[];
  __shared__ std::uint32_t cells[kMaxExperts];
  __shared__ __align__(8) std::uint64_t barriers[kWarps];
  __shared__ Operation shared_op;
  __shared__ OwnTokens own;
  const bool sends = (a.call.parts & kSend) != 0;
  const bool receives = (a.call.parts & kReceive) != 0;
  const int chunks = a.chunks.count;
  const int own_units = a.call.sizes.max_tokens * chunks;
  const auto own_piece = [&](int unit) { return Piece{a.world.rank, unit / chunks, unit % chunks}; };
  WarpBuffer<kFp8>& buffer = reinterpret_cast<WarpBuffer<kFp8>*>(dynamic)[warp_id()];
  auto* kept = reinterpret_cast<std::uint32_t*>(dynamic + kWarps * sizeof(WarpBuffer<kFp8>));

  for (int i = threadIdx.x; i < a.call.sizes.experts; i += kThreads) cells[i] = 0;
  for (int i = threadIdx.x; i < kKept; i += kThreads) kept[i] = 0;
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
    Dispatch<kFp8> early(a, op, buffer, &barriers[warp_id()], cells, kept);
    if (tells()) tell_early(a.world, a.call);
    if (begins_with_own) early.load_own(own_piece(first));
    if (warp_id() == kWarps - 1) {
      const Operation begun = begin_call(a.world, a.call, Phase::dispatch);
      if (lane_id() == 0) shared_op = begun;
    }
    if (sends) expert = early.count_positions(own, first_token);
  }
  __syncthreads();
  op = shared_op;
  if (op.epoch == 0) {
    if (begins_with_own) barrier_wait(&barriers[warp_id()], 0);
    return;
  }
  Dispatch<kFp8> dispatch(a, op, buffer, &barriers[warp_id()], cells, kept);

  if (sends) {
    dispatch.announce(own, first_token + warp_id() * static_cast<int>(gridDim.x), expert);
    for (int token = first_token + unit_stride(); token < a.call.sizes.max_tokens; token += unit_stride()) {
      __syncthreads();
      expert = dispatch.count_positions(own, token);
      dispatch.announce(own, token + warp_id() * static_cast<int>(gridDim.x), expert);
    }
  }
  if (tells()) tell_late(a.world, a.call, op);
  if (begins_with_own) dispatch.push(own_piece(first));
  if (receives) {
    if (blockIdx.x == 0 && warp_id() == kWarps - 1) check_alike(a.world, op);
    dispatch.count_selections();
    __syncthreads();
    dispatch.lay_out();
    __syncthreads();
  }
  for (int unit = first; sends && unit < own_units; unit += unit_stride()) {
    const Piece piece = own_piece(unit);
    const bool there = piece.token < a.call.tokens;
    if (unit != first && there) {
      bulk_wait_read<0>();
      __syncwarp();
      dispatch.load_own(piece);
      dispatch.push(piece);
    }
    if (receives) {
      const std::int64_t row = dispatch.place(piece);
      dispatch.expand(piece, there ? row : -1);
    }
    if (!there) continue;
    if (receives) {
      bulk_wait<1>();
    } else {
      bulk_wait<0>();
    }
    dispatch.raise_flags(piece);
  }
  if (receives) {
    const int sources = sends ? a.world.ranks - 1 : a.world.ranks;
    const int units = own_units * sources;
    for (int unit = last_unit(); unit < units; unit += unit_stride()) {
      const int nth = unit / chunks % sources;
      const Piece piece{sends ? (a.world.rank + 1 + nth) % a.world.ranks : nth, unit / chunks / sources, unit % chunks};
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

template <bool kFp8>
cudaError_t launch(const DispatchArgs& args, int blocks, cudaStream_t stream) {
  ep_ll_dispatch<kFp8><<<blocks, kThreads, kSharedBytes<kFp8>, stream>>>(args);
  return cudaGetLastError();
}

template <bool kFp8>
cudaError_t prepare() {
  return cudaFuncSetAttribute(ep_ll_dispatch<kFp8>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<kFp8>);
}

}  // namespace

cudaError_t prepare_dispatch() {
  const cudaError_t prepared = prepare<false>();
  return prepared == cudaSuccess ? prepare<true>() : prepared;
}

cudaError_t launch_dispatch(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                            const DispatchInput& in, const DispatchOutput& out, const Map& map, int blocks,
                            cudaStream_t stream) {
  const DispatchArgs args{world, layout, call, in, out, map, chunks_of(call.sizes.hidden, kDispatchColumns)};
  return in.fp8 ? launch<true>(args, blocks, stream) : launch<false>(args, blocks, stream);
}

}  // namespace ep_core::cuda
