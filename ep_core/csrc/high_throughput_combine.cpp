// High throughput's combine: see high_throughput.hpp for chunks, the ring and who writes what.
#include <algorithm>
#include <cstring>
#include <string>

#include "guard.hpp"
#include "high_throughput.hpp"
#include "high_throughput_chunks.hpp"
#include "kernels.hpp"

namespace ep_core {

void HighThroughput::combine(const HtCombineInput& in, std::byte* out, float* out_weights) {
  guarded(world_, [&] {
    if (open_) throw Misuse("combine: the dispatch before was not finished");
    const int ranks = world_.ranks();
    const int self = world_.rank();
    const std::int64_t row_bytes = in.columns * (in.is_f32 ? 4 : 2);
    const bool weighted = in.topk_count > 0;  // a pointer would not do: no rows, no memory
    const Geometry at = geometry(row_bytes, head_bytes(0, in.topk_count), ranks);
    check_combine(in);

    HighThroughputPost own{};
    own.phase = Phase::combine;
    own.tokens = static_cast<std::int32_t>(in.tokens);
    own.row_bytes = static_cast<std::int32_t>(row_bytes);
    own.scales = in.is_f32;
    own.topk = static_cast<std::int32_t>(in.topk_count);
    begin(Phase::combine, own, nullptr);

    std::int64_t most_tokens = 0;
    for (int r = 0; r < ranks; ++r) most_tokens = std::max<std::int64_t>(most_tokens, post(r).tokens);
    const std::int64_t chunks = chunks_of(most_tokens, at.tokens);
    std::int64_t staged = ranks == 1 ? chunks : 0;
    std::int64_t taken = 0;
    // [source]: the next of the rows that came from it and go back to it.
    std::vector<std::int64_t> cursor(static_cast<std::size_t>(ranks));
    std::vector<std::int64_t> end(static_cast<std::size_t>(ranks));
    for (int source = 0; source < ranks; ++source) {
      const auto s = static_cast<std::size_t>(source);
      cursor[s] = source == 0 ? 0 : in.rank_prefix[(source - 1) * ranks + self];
      end[s] = in.rank_prefix[source * ranks + self];
    }
    const auto weights_of = [](const std::byte* record) { return reinterpret_cast<const float*>(record); };

    const auto stage = [&](std::int64_t chunk) {
      std::byte* const base = slot(self, staged_) + 64;
      const std::int64_t first = chunk * at.tokens;
      for (int to = 0; to < ranks; ++to) {
        if (to == self) continue;
        std::int64_t& row = cursor[static_cast<std::size_t>(to)];
        for (; row < end[static_cast<std::size_t>(to)] && in.src_idx[row] < first + at.tokens; ++row) {
          const std::int64_t lane = to * at.tokens + in.src_idx[row] - first;
          std::byte* record = base + static_cast<std::size_t>(lane) * at.record;
          if (weighted)
            std::memcpy(record, in.weights + row * in.topk_count, static_cast<std::size_t>(4 * in.topk_count));
          std::memcpy(record + at.head, in.x + row * row_bytes, static_cast<std::size_t>(row_bytes));
          if (world_.is_far(to)) {
            world_.put(world_.node_of(to), record, at.head + static_cast<std::size_t>(row_bytes));
          }
        }
      }
    };

    const auto reduce = [&](std::int64_t chunk) {
      const std::byte* rows[kMaxRanks + 2];
      const float* row_weights[kMaxRanks];
      float ones[kMaxRanks + 2];
      std::fill_n(ones, kMaxRanks + 2, 1.0f);
      const std::int64_t first = chunk * at.tokens;
      for (std::int64_t t = first; t < std::min(first + at.tokens, in.tokens); ++t) {
        int count = 0;
        int sources = 0;
        for (const std::byte* bias : in.bias) {
          if (bias != nullptr) rows[count++] = bias + t * row_bytes;
        }
        for (int from = 0; from < ranks; ++from) {
          if (!in.in_rank[t * ranks + from]) continue;
          if (from == self) {
            const std::int64_t row = cursor[static_cast<std::size_t>(self)]++;
            rows[count++] = in.x + row * row_bytes;
            if (weighted) row_weights[sources++] = in.weights + row * in.topk_count;
          } else {
            const std::byte* base = slot(from, taken_[static_cast<std::size_t>(from)]) + 64;
            const std::byte* record = base + static_cast<std::size_t>(self * at.tokens + t - first) * at.record;
            rows[count++] = record + at.head;
            if (weighted) row_weights[sources++] = weights_of(record);
          }
        }
        const auto columns = static_cast<std::size_t>(in.columns);
        if (in.is_f32) {
          kernels().sum_f32(reinterpret_cast<const float* const*>(rows), count,
                            reinterpret_cast<float*>(out + t * row_bytes), columns);
        } else {
          kernels().weighted_sum_bf16(reinterpret_cast<const std::uint16_t* const*>(rows), ones, count,
                                      reinterpret_cast<std::uint16_t*>(out + t * row_bytes), columns);
        }
        for (std::int64_t k = 0; weighted && k < in.topk_count; ++k) {
          float sum = 0.0f;
          for (int s = 0; s < sources; ++s) sum += row_weights[s][k];
          out_weights[t * in.topk_count + k] = sum;
        }
      }
    };

    const auto staged_by = [&](int peer) {
      return peer == self || has_staged(peer, taken_[static_cast<std::size_t>(peer)] + 1);
    };
    const auto takeable = [&] {
      if (taken == chunks) return false;
      for (int peer = 0; peer < ranks; ++peer) {
        if (!staged_by(peer)) return false;
      }
      return true;
    };
    while (staged < chunks || taken < chunks) {
      bool moved = false;
      if (staged < chunks && slot_free()) {
        stage(staged++);
        publish_staged();
        moved = true;
      }
      if (takeable()) {
        reduce(taken++);
        for (int peer = 0; peer < ranks; ++peer) {
          if (peer != self) publish_taken(peer);
        }
        moved = true;
      }
      if (!moved) {
        world_.waiter().any(
            "combine", [&] { return (staged < chunks && slot_free()) || takeable(); },
            [&](int peer) { return (taken == chunks || staged_by(peer)) && (staged == chunks || slot_free_of(peer)); });
      }
    }
    finish();
  });
}

// The handle and x must belong together: everything below is read by its indices.
void HighThroughput::check_combine(const HtCombineInput& in) const {
  const int ranks = world_.ranks();
  const int self = world_.rank();
  const auto wrong = [](const std::string& what) {
    throw WrongArgument("handle: " + what + "; give the handle that dispatch returned, unchanged");
  };
  std::int64_t row = 0;
  for (int source = 0; source < ranks; ++source) {
    const std::int64_t end = in.rank_prefix[source * ranks + self];
    if (end < row || end > in.received) wrong("rank_prefix_matrix is not ascending within the received rows");
    for (std::int32_t before = -1; row < end; before = in.src_idx[row++]) {
      if (in.src_idx[row] <= before) wrong("recv_src_idx is not ascending within a source rank");
    }
  }
  if (row != in.received) {
    wrong("rank_prefix_matrix has " + std::to_string(row) + " received rows, recv_src_idx " +
          std::to_string(in.received));
  }
  for (int r = 0; r < ranks; ++r) {
    std::int64_t sent = 0;
    for (std::int64_t t = 0; t < in.tokens; ++t) sent += in.in_rank[t * ranks + r];
    const std::int64_t wanted =
        in.rank_prefix[self * ranks + r] - (self > 0 ? in.rank_prefix[(self - 1) * ranks + r] : 0);
    if (sent != wanted) {
      wrong("is_token_in_rank sends " + std::to_string(sent) + " tokens to rank " + std::to_string(r) +
            ", rank_prefix_matrix " + std::to_string(wanted));
    }
  }
}

}  // namespace ep_core
