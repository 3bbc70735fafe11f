// Where things lie in a half of the low-latency region, and how progress is written. See low_latency.hpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "control.hpp"

namespace ep_core {

// Sizes that all ranks must agree on in one operation.
struct LowLatencySizes {
  std::int64_t max_tokens;
  std::int64_t hidden;
  std::int64_t experts;
};

constexpr std::uint64_t kProgressBits = 16;
constexpr std::uint64_t kPosted = 1;
constexpr std::uint64_t kComplete = 0xffff;
constexpr std::int64_t kChunks = 16;

constexpr std::uint64_t progress_word(std::uint64_t epoch, std::uint64_t progress) {
  return epoch << kProgressBits | progress;
}

constexpr std::uint64_t chunk_progress(std::int64_t chunk) { return kPosted + 1 + static_cast<std::uint64_t>(chunk); }

inline std::int64_t chunk_tokens(const LowLatencySizes& sizes) { return (sizes.max_tokens + kChunks - 1) / kChunks; }

inline std::int64_t chunk_count(const LowLatencySizes& sizes) {
  return (sizes.max_tokens + chunk_tokens(sizes) - 1) / chunk_tokens(sizes);
}

inline const char* name(Phase phase) {
  return phase == Phase::dispatch ? "low_latency_dispatch" : "low_latency_combine";
}

struct Range {
  std::int64_t begin;
  std::int64_t count;
};

inline Range unpack(std::int64_t range) { return {range >> 32, range & 0xffffffff}; }

// Byte offsets within one half. Dispatch and combine never use the same half at once.
struct LowLatencyLayout {
  std::int64_t local;   // local experts
  std::int64_t slots;   // rows per local expert
  std::size_t topk;     // dispatch: int32 [tokens, topk]
  std::size_t weights;  // dispatch, if they travel: float32 [tokens, topk]
  std::size_t staged;   // dispatch: rows of staged_row bytes
  std::size_t staged_row;
  std::size_t ranges;    // combine: int64 [local, ranks]
  std::size_t src_info;  // combine: int32 [local, slots]; if rows come reduced: their places, int32 [ranks, tokens]
  std::size_t rows;      // combine: bf16 [local, slots, hidden]
  std::size_t bytes;

  LowLatencyLayout(const LowLatencySizes& sizes, int ranks) {
    const auto tokens = static_cast<std::size_t>(sizes.max_tokens);
    const auto hidden = static_cast<std::size_t>(sizes.hidden);
    local = sizes.experts / ranks;
    slots = ranks * sizes.max_tokens;
    const auto cells = static_cast<std::size_t>(local * slots);
    topk = 0;
    weights = tokens * kMaxTopk * sizeof(std::int32_t);
    staged = align_up(weights + tokens * kMaxTopk * sizeof(float), 64);
    staged_row = align_up(std::max(2 * hidden, hidden + hidden / kScaleBlock * sizeof(float)), 64);
    const std::size_t dispatch_bytes = staged + tokens * staged_row;
    ranges = 0;
    src_info = align_up(static_cast<std::size_t>(local * ranks) * sizeof(std::int64_t), 64);
    rows = align_up(src_info + cells * sizeof(std::int32_t), kPage);
    bytes = align_up(std::max(dispatch_bytes, rows + cells * hidden * sizeof(std::uint16_t)), kPage);
  }
};

}  // namespace ep_core
