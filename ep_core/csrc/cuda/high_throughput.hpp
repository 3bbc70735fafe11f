// High throughput on the GPU: exact-size receive, one copy per destination rank, through a bounded ring of any size.
// Plain C++: what the kernels are given, and how the host class launches them.
//
// An operation is: layout (whenever the caller likes), notify (not for a handle's second use), dispatch; later combine.
// Rows pass through the ring of the rank they go to (`RingLayout`); a rank's own rows never do. The sender of a row
// writes it into its place and then the place's flag; the receiver reads it and then gives the place's credit, in the
// sender's segment, for the row of the next lap. The credits of an operation's last lap are not given: the next
// operation begins with every peer's acknowledgement (`begin` in device.cuh).
//
// Why nothing deadlocks, for any number of blocks and any ring from one place on. All blocks are resident (at most one
// an SM, never more blocks than SMs), each has senders and receivers, and a sender never waits for a receiver of its
// own rank. A warp takes its tokens, or its rows of one peer, in increasing order.
// - Dispatch. A send warp takes a token to all its destinations; receive warps take each source's rows independently of
//   the other sources. Let t be the least token of a source that is not wholly sent; it is its warp's current one. All
//   rows of lesser tokens are sent, so their receivers take them, whatever other sources do, and give their credits:
//   also the one that t waits for, since a place's row before belongs to a lesser token. So t is sent.
// - Combine. A send warp takes each destination's rows independently of the other destinations; a reduce warp takes a
//   token and waits for the rows of all ranks. Let t be the least token of a source that is not reduced; it is its
//   warp's current one. Its row at any rank needs the credit of a row of a lesser token, which was given when that was
//   reduced; the rows before it at that rank are of lesser tokens, so they are sent and keep no warp from it. So t's
//   rows arrive and t is reduced.
// A warp announces the rows it has finished before it waits for anything.
//
// Next to read: high_throughput.cuh, then high_throughput_dispatch.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "layout.hpp"

namespace ep_core::cuda {

struct World;

// Codes of `Failure` from 4 on: values on the device that do not belong together.
enum class Wrong : std::uint32_t {
  room = 4,    // the rank marked missing receives `what` rows and has space for `where`
  rank = 5,    // topk_idx, flat index `where`: expert `what` is on a rank to which the token is not sent
  counts = 6,  // num_tokens_per_rank of rank `where` is `what`, is_token_in_rank says otherwise
  handle = 7,  // is_token_in_rank, send_head and rank_prefix_matrix disagree, or x has fewer rows than they say
};

// In which of its arguments a rank must agree with its peers. Travels as 32 bits in a call word.
struct Signature {
  enum Kind : std::uint32_t { notify = 0, dispatch = 1, combine = 2 };

  Kind kind;
  std::uint32_t size;    // notify: experts; else bytes per row / 16
  std::uint32_t scales;  // per row
  std::uint32_t topk;    // per row
  std::uint32_t is_f32;

  EP_HOST_DEVICE constexpr std::uint32_t packed() const {
    return kind | size << 2 | scales << 15 | topk << 23 | is_f32 << 29;
  }
  EP_HOST_DEVICE static constexpr Signature of(std::uint32_t word) {
    return {static_cast<Kind>(word & 3), word >> 2 & 0x1fff, word >> 15 & 0xff, word >> 23 & 0x3f, word >> 29 & 1};
  }
};

// A place in the ring: the row, then what travels with it, each part at a multiple of 16 bytes.
struct PlaceLayout {
  std::int64_t scales;   // float32
  std::int64_t topk;     // int32: local expert or -1
  std::int64_t weights;  // float32
  std::int64_t token;    // int32, at the source
  std::int64_t bytes;

  EP_HOST_DEVICE constexpr PlaceLayout(std::int64_t row_bytes, std::int64_t scales_per_row, std::int64_t topk_count,
                                       std::int64_t weights_count)
      : scales(align_up(row_bytes, 16)),
        topk(scales + align_up(4 * scales_per_row, 16)),
        weights(topk + align_up(4 * topk_count, 16)),
        token(weights + align_up(4 * weights_count, 16)),
        bytes(align_up(token + 16, 128)) {}
};

// All pointers are to device memory unless said. R ranks, T tokens, K top-k, E experts, N rows received.
struct HtLayout {
  const std::int64_t* topk;  // [T, K]
  int tokens;
  int topk_count;
  int experts;
  std::int32_t* per_rank;    // out: [R]
  std::int32_t* per_expert;  // out: [E]
  bool* in_rank;             // out: [T, R]
};

struct HtNotify {
  int tokens;
  int experts;
  const std::int32_t* per_rank;    // [R]
  const std::int32_t* per_expert;  // [E]
  const bool* in_rank;             // [T, R]
  std::int64_t room;               // rows there will be space for; 0: any number
  std::int32_t* rank_prefix;       // out: [R, R], rows from sources up to the row's rank to the column's rank
  std::int32_t* send_head;         // out: [T, R], the token's position among those for that rank, or -1
  Counts* counts;                  // out: pinned host memory, or null
};

struct HtDispatch {
  const std::byte* x;  // [T, row_bytes]
  int row_bytes;
  const float* scales;  // [T, scales_per_row], or null
  int scales_per_row;
  const std::int64_t* topk;  // [T, K], or null
  const float* weights;      // [T, K], or null
  int topk_count;            // 0 without topk
  int tokens;
  int experts;  // 0 without topk
  const bool* in_rank;
  const std::int32_t* send_head;
  const std::int32_t* rank_prefix;
  std::int64_t room;          // rows that the outputs have; 0: as many as rank_prefix says
  std::byte* out_x;           // [N, row_bytes]
  float* out_scales;          // [N, scales_per_row], or null
  std::int64_t* out_topk;     // [N, K], local expert or -1, or null; rows from N to room become -1
  float* out_weights;         // [N, K], 0 where the expert is elsewhere, or null
  std::int32_t* out_src_idx;  // [N], or null

  EP_HOST_DEVICE constexpr Signature signature() const {
    return {Signature::dispatch, static_cast<std::uint32_t>(row_bytes / 16), static_cast<std::uint32_t>(scales_per_row),
            static_cast<std::uint32_t>(topk_count), 0};
  }
  EP_HOST_DEVICE constexpr PlaceLayout place() const { return {row_bytes, scales_per_row, topk_count, topk_count}; }
};

struct HtCombine {
  const std::byte* x;  // [rows, row_bytes], bf16 or float32
  bool is_f32;
  int row_bytes;
  std::int64_t rows;     // of x; 0: as many as rank_prefix says
  const float* weights;  // [rows, K], or null
  int topk_count;        // 0 without weights
  const bool* in_rank;
  const std::int32_t* send_head;
  const std::int32_t* rank_prefix;
  int tokens;
  const std::byte* bias[2];  // [T, row_bytes] each, or null
  std::byte* out;            // [T, row_bytes]
  float* out_weights;        // [T, K], or null

  EP_HOST_DEVICE constexpr Signature signature() const {
    return {Signature::combine, static_cast<std::uint32_t>(row_bytes / 16), 0, static_cast<std::uint32_t>(topk_count),
            is_f32 ? 1u : 0u};
  }
  EP_HOST_DEVICE constexpr PlaceLayout place() const { return {row_bytes, 0, 0, topk_count}; }
};

// Once for each device, before any launch: allows the kernels the shared memory they use.
cudaError_t prepare_high_throughput();

// Each enqueues one kernel and returns. `ring_bytes`: of the ring at world.ring, the same on all ranks, not below
// RingLayout::least_bytes(place().bytes, ranks). `sms`: blocks to use, from 1 to the device's number of SMs.
cudaError_t launch_ht_layout(const World& world, const HtLayout& arguments, cudaStream_t stream);
cudaError_t launch_ht_notify(const World& world, const HtNotify& arguments, cudaStream_t stream);
cudaError_t launch_ht_dispatch(const World& world, const HtDispatch& arguments, std::int64_t ring_bytes, int sms,
                               cudaStream_t stream);
cudaError_t launch_ht_combine(const World& world, const HtCombine& arguments, std::int64_t ring_bytes, int sms,
                              cudaStream_t stream);

}  // namespace ep_core::cuda
