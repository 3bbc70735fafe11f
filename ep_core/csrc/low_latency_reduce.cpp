// The combine of low_latency.hpp that reduces where the experts are: one row for each (token, rank) goes back.
//
// The map of the dispatch says which rows here are whose. A token's rows are summed into the place of its first one, so
// the sums lie where a zero-copy combine has its rows anyway, and need no other memory. Where the handle would be for
// combine exact lie the places instead: int32 [source, token], -1 for a token that has no row here.
#include <algorithm>
#include <string>

#include "guard.hpp"
#include "kernels.hpp"
#include "low_latency.hpp"

namespace ep_core {

void LowLatency::check_map(const CombineInput& in) const {
  const std::int64_t rows = layout(in.sizes).local * layout(in.sizes).slots;
  for (std::int64_t i = 0; i < world_.ranks() * in.sizes.max_tokens * in.topk_count; ++i) {
    if (in.map_rows[i] < -1 || in.map_rows[i] >= rows) {
      throw WrongArgument("handle: its map says row " + std::to_string(in.map_rows[i]) + " of " + std::to_string(rows) +
                          "; give the handle that low_latency_dispatch returned, unchanged");
    }
  }
}

LowLatency::Pending& LowLatency::stage_reduced(const CombineInput& in, bool hooked) {
  check_fits(in.sizes);
  check_map(in);
  check_offered(in);
  const std::uint64_t epoch = begin(Phase::combine);
  const LowLatencyLayout at = layout(in.sizes);
  const std::int64_t max_tokens = in.sizes.max_tokens;
  std::byte* const base = half(world_.rank(), epoch);
  auto* places = reinterpret_cast<std::int32_t*>(base + at.src_info);
  for (std::int64_t token = 0; token < world_.ranks() * max_tokens; ++token) {
    places[token] = -1;
    for (std::int64_t k = 0; k < in.topk_count && places[token] < 0; ++k) {
      places[token] = in.map_rows[token * in.topk_count + k];
    }
  }
  for (int source = 0; source < world_.ranks(); ++source) {
    if (!world_.is_far(source)) continue;
    world_.put(world_.node_of(source), places + source * max_tokens,
               static_cast<std::size_t>(max_tokens) * sizeof(std::int32_t));
  }
  post_combine(epoch, in, hooked, 0);
  Pending& op = pending_[epoch & 1];

  const auto hidden = static_cast<std::size_t>(in.sizes.hidden);
  auto* to = reinterpret_cast<std::uint16_t*>(base + at.rows);
  const std::uint16_t* from = in.zero_copy ? to : in.x;
  const std::uint16_t* rows[kMaxTopk];
  float weights[kMaxTopk];
  const std::int64_t step = chunk_tokens(in.sizes);
  for (std::int64_t chunk = 0; chunk < chunk_count(in.sizes); ++chunk) {
    for (int source = 0; source < world_.ranks(); ++source) {
      for (std::int64_t t = chunk * step; t < std::min((chunk + 1) * step, max_tokens); ++t) {
        const std::int64_t token = source * max_tokens + t;
        if (places[token] < 0) continue;
        int count = 0;
        for (std::int64_t k = token * in.topk_count; k < (token + 1) * in.topk_count; ++k) {
          if (in.map_rows[k] < 0) continue;
          rows[count] = from + static_cast<std::size_t>(in.map_rows[k]) * hidden;
          weights[count++] = in.map_weights[k];
        }
        std::uint16_t* sum = to + static_cast<std::size_t>(places[token]) * hidden;
        kernels().weighted_sum_bf16(rows, weights, count, sum, hidden);
        if (world_.is_far(source)) world_.put(world_.node_of(source), sum, hidden * sizeof(std::uint16_t));
      }
    }
    publish(epoch, chunk_progress(chunk));
    world_.ring_all();
  }
  publish(epoch, kComplete);
  world_.ring_all();
  return op;
}

void LowLatency::receive_reduced(Pending& op, std::uint16_t* out) {
  check_peers(op);
  const LowLatencyLayout at = layout(op.sizes);
  const auto hidden = static_cast<std::size_t>(op.sizes.hidden);
  const std::uint16_t* rows[kMaxRanks];
  float ones[kMaxRanks];
  std::fill_n(ones, kMaxRanks, 1.0f);
  const std::int64_t step = chunk_tokens(op.sizes);
  for (std::int64_t chunk = 0; chunk < chunk_count(op.sizes); ++chunk) {
    world_.waiter().all(word(op.phase), [&](int peer) { return peer_at(peer, op.epoch, chunk_progress(chunk)); });
    for (std::int64_t t = chunk * step; t < std::min((chunk + 1) * step, op.tokens); ++t) {
      int count = 0;
      for (int owner = 0; owner < world_.ranks(); ++owner) {
        const std::byte* base = half(owner, op.epoch);
        const auto* places = reinterpret_cast<const std::int32_t*>(base + at.src_info);
        const std::int32_t place = places[world_.rank() * op.sizes.max_tokens + t];
        if (place < 0) continue;
        rows[count++] =
            reinterpret_cast<const std::uint16_t*>(base + at.rows) + static_cast<std::size_t>(place) * hidden;
      }
      kernels().weighted_sum_bf16(rows, ones, count, out + static_cast<std::size_t>(t) * hidden, hidden);
    }
  }
  finish(op);
}

}  // namespace ep_core
