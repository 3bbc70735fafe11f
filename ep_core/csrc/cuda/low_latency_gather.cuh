// What low-latency combine is given, and the part of its work that needs to know no operation: reading and adding this
// rank's rows. Included by low_latency_combine.cuh.
#pragma once

#include "reach.cuh"

namespace ep_core::cuda {
namespace {

template <bool kPorts>
struct CombineArgs {
  World world;
  LowLatencyLayout layout;
  LowLatencyCall call;
  CombineInput in;
  Map map;
  std::byte* out;
  Chunks chunks;
};

template <>
struct CombineArgs<true> : CombineArgs<false> {
  PortsGiven ports;
};

constexpr int kPieceBytes = 2 * kCombineColumns;
constexpr int kVectors = kPieceBytes / 16 / kWarp;  // 16-byte vectors of a piece for each lane
constexpr int kBatch = 2;                           // rows in flight; with 4 a warp has too few registers and is slower

struct alignas(128) WarpBuffer {
  std::byte pieces[kBatch][kPieceBytes];
};

constexpr int kSharedBytes = kWarps * sizeof(WarpBuffer);  // for exact

// A lane's columns of a piece, in bf16.
struct Rounded {
  uint4 vector[kVectors];
};

// Likewise, in float32.
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

  __device__ Rounded rounded() const {
    Rounded result;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = to_bf16_pair(value[v][2 * i], value[v][2 * i + 1]);
      result.vector[v] = {words[0], words[1], words[2], words[3]};
    }
    return result;
  }
};

// A piece of a token of a source.
struct Piece {
  int source;
  int token;
  int chunk;
};

// The part of the work that needs to know no operation: reading this rank's rows.
class Gather {
 public:
  __device__ Gather(const CombineArgs<false>& args, WarpBuffer& buffer, std::uint64_t* barrier)
      : a(args), row_bytes(2ll * args.call.sizes.hidden), buffer(buffer), barrier(barrier) {}

  // By a warp: takes up a piece. Lane k's row for selection k of the token, or -1; which lanes have one.
  __device__ void take(const Piece& taken) {
    piece = taken;
    row = row_here(taken.source, taken.token);
    here = __ballot_sync(kAll, row >= 0);
  }

  // By a warp: begins to load the next few rows of `left`, the buffer being free; lane i gets the i-th. Takes them out.
  __device__ void load_rows(unsigned& left) {
    const int bytes = piece_bytes(piece.chunk);
    selection = -1;
    int count = 0;
    for (; count < kBatch && left != 0; ++count, left &= left - 1) {
      if (lane_id() == count) selection = __ffs(left) - 1;
    }
    const std::int64_t from = __shfl_sync(kAll, row, max(selection, 0));
    if (lane_id() == 0) barrier_expect(barrier, count * bytes);
    __syncwarp();
    if (selection >= 0) bulk_load(buffer.pieces[lane_id()], input(from, piece.chunk), bytes, barrier);
  }
  __device__ void wait_for_rows() {
    barrier_wait(barrier, parity);
    parity ^= 1;
  }

  // By a warp: the weighted sum of the rows.
  __device__ Rounded sum_rows() const {
    const std::int64_t index = selection_index(piece.source, piece.token) + lane_id();
    const float weight = row >= 0 ? a.map.weights[index] : 0.0f;
    Sum sum;
    sum.clear();
    add_pieces(
        sum, here, piece.chunk, [&](int k) { return input(__shfl_sync(kAll, row, k), piece.chunk); },
        [&](int k) { return __shfl_sync(kAll, weight, k); });
    return sum.rounded();
  }

  // Adds the pieces that `wanted` names, in ascending order, several of them in flight.
  template <class PieceOf, class WeightOf>
  __device__ void add_pieces(Sum& sum, unsigned wanted, int chunk, const PieceOf& piece_of,
                             const WeightOf& weight_of) const {
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
        const auto* from = reinterpret_cast<const uint4*>(piece_of(bit));
        weights[i] = weight_of(bit);
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

  __device__ void write(std::byte* to, const Rounded& columns, int chunk) const {
    const int vectors = piece_bytes(chunk) / 16;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v * kWarp + lane_id() < vectors) reinterpret_cast<uint4*>(to)[v * kWarp + lane_id()] = columns.vector[v];
    }
  }

  __device__ std::int64_t selection_index(int source, int token) const {
    return (static_cast<std::int64_t>(source) * a.call.sizes.max_tokens + token) * a.call.topk;
  }
  __device__ std::int64_t row_here(int source, int token) const {
    if (lane_id() >= a.call.topk) return -1;
    const std::int32_t told = a.map.rows[selection_index(source, token) + lane_id()];
    // A dispatch that failed has not written its whole map.
    const auto rows = static_cast<std::uint32_t>(a.call.sizes.experts * a.call.sizes.max_tokens);
    return static_cast<std::uint32_t>(told) < rows ? told : -1;
  }
  __device__ int piece_bytes(int chunk) const { return 2 * a.chunks.of(chunk, a.call.sizes.hidden); }
  __device__ const std::byte* input(std::int64_t from, int chunk) const {
    return static_cast<const std::byte*>(a.in.x) + from * row_bytes + chunk * a.chunks.columns * 2;
  }

  const CombineArgs<false>& a;
  const std::int64_t row_bytes;
  WarpBuffer& buffer;
  std::uint64_t* barrier;
  std::uint32_t parity = 0;
  Piece piece{};
  std::int64_t row = -1;
  unsigned here = 0;
  int selection = -1;  // that this lane loaded last
};

}  // namespace
}  // namespace ep_core::cuda
