// The combine half of low_latency.hpp.
#include <algorithm>
#include <cstring>
#include <string>

#include "guard.hpp"
#include "kernels.hpp"
#include "low_latency.hpp"

namespace ep_core {
namespace {

// Rows to stage from which on the ring is worth a wait for the others' posts, and its size: together with the other
// ranks' rings it should stay in the last-level cache.
constexpr std::int64_t kRingFromBytes = 1 << 20;
constexpr std::int64_t kRingBytes = 2 << 20;

}  // namespace

void LowLatency::check_handle(const CombineInput& in, bool& sorted) const {
  const LowLatencyLayout at = layout(in.sizes);
  const int ranks = world_.ranks();
  sorted = true;
  for (std::int64_t local = 0; local < at.local; ++local) {
    for (int source = 0; source < ranks; ++source) {
      const Range range = unpack(in.layout_range[local * ranks + source]);
      if (range.begin < 0 || range.count > in.sizes.max_tokens || range.begin + range.count > at.slots) {
        throw WrongArgument("handle: layout_range[" + std::to_string(local) + ", " + std::to_string(source) +
                            "] is begin " + std::to_string(range.begin) + ", count " + std::to_string(range.count) +
                            ", outside of " + std::to_string(at.slots) +
                            " slots; give the handle that low_latency_dispatch returned, unchanged");
      }
      const std::int32_t* tokens = in.src_info + local * at.slots + range.begin;
      for (std::int64_t i = 0; i < range.count; ++i) {
        if (tokens[i] < 0 || tokens[i] >= in.sizes.max_tokens) {
          throw WrongArgument("handle: src_info[" + std::to_string(local) + ", " + std::to_string(range.begin + i) +
                              "] is " + std::to_string(tokens[i]) + ", wanted a token below " +
                              std::to_string(in.sizes.max_tokens) +
                              "; give the handle that low_latency_dispatch returned, unchanged");
        }
        sorted = sorted && (i == 0 || tokens[i - 1] <= tokens[i]);
      }
    }
  }
}

std::uint16_t* LowLatency::next_combine_buffer(const LowLatencySizes& sizes) {
  return guarded(world_, [&] {
    check_fits(sizes);
    const std::uint64_t epoch = begin(Phase::combine);
    offered_ = epoch;
    return reinterpret_cast<std::uint16_t*>(half(world_.rank(), epoch) + layout(sizes).rows);
  });
}

// How many ring places each destination gets: 0 when rows are to stay in place. Fills due_: rows due to each
// destination before each chunk.
std::int64_t LowLatency::plan_ring(const CombineInput& in) {
  const LowLatencyLayout at = layout(in.sizes);
  const int ranks = world_.ranks();
  const std::int64_t chunks = chunk_count(in.sizes);
  const std::int64_t step = chunk_tokens(in.sizes);
  due_.assign(static_cast<std::size_t>(ranks * (chunks + 1)), 0);
  for (std::int64_t cell = 0; cell < at.local * ranks; ++cell) {
    const std::int64_t to = cell % ranks;
    if (to == world_.rank()) continue;
    const Range range = unpack(in.layout_range[cell]);
    const std::int32_t* tokens = in.src_info + cell / ranks * at.slots + range.begin;
    for (std::int64_t i = 0; i < range.count; ++i)
      ++due_[static_cast<std::size_t>(to * (chunks + 1) + tokens[i] / step + 1)];
  }
  const std::int64_t row_bytes = in.sizes.hidden * 2;
  const std::int64_t places = std::min(kRingBytes / row_bytes / std::max(ranks - 1, 1), at.local * in.sizes.max_tokens);
  std::int64_t total = 0;
  bool fits = true;
  for (int to = 0; to < ranks; ++to) {
    std::int64_t* due = due_.data() + to * (chunks + 1);
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      fits = fits && due[chunk + 1] <= places;
      due[chunk + 1] += due[chunk];
    }
    total += due[chunks];
  }
  return fits && total * row_bytes >= kRingFromBytes ? places : 0;
}

// Whether every destination has reduced enough for chunk `chunk` to be staged into the ring.
bool LowLatency::ring_has_room(const Pending& op, std::int64_t chunk, int to) const {
  if (to == world_.rank()) return true;
  const std::int64_t chunks = chunk_count(op.sizes);
  const std::uint64_t word = world_.control(to).ll_reduced.value.load(std::memory_order_acquire);
  const std::uint64_t at_epoch = word >> kProgressBits;
  const std::int64_t reduced = at_epoch < op.epoch   ? 0
                               : at_epoch > op.epoch ? chunks
                                                     : static_cast<std::int64_t>(word & kComplete);
  const std::int64_t* due = due_.data() + to * (chunks + 1);
  return due[chunk + 1] - due[reduced] <= ring_rows_;
}

void LowLatency::stage_chunk(const Pending& op, const CombineInput& in, std::int64_t chunk, bool sorted) {
  const LowLatencyLayout at = layout(op.sizes);
  const int ranks = world_.ranks();
  const auto hidden = static_cast<std::size_t>(op.sizes.hidden);
  auto* rows = reinterpret_cast<std::uint16_t*>(half(world_.rank(), op.epoch) + at.rows);
  // Rows that are not sorted by token cannot be found by chunk: then all go with the last one.
  const bool last = chunk + 1 == chunk_count(op.sizes);
  const std::int64_t end = last ? INT32_MAX : sorted ? (chunk + 1) * chunk_tokens(op.sizes) : 0;
  copies_.clear();
  for (std::int64_t cell = 0; cell < at.local * ranks; ++cell) {
    const std::int64_t to = cell % ranks;
    if (to == world_.rank() && op.own_rows != nullptr) continue;
    const Range range = unpack(in.layout_range[cell]);
    const std::int64_t first = cell / ranks * at.slots + range.begin;
    std::int32_t& done = cursor_[static_cast<std::size_t>(cell)];
    std::int32_t upto = done;
    while (upto < range.count && in.src_info[first + upto] < end) ++upto;
    for (std::int64_t row = first + done; row < first + upto; ++row) {
      const std::int64_t place =
          ring_rows_ == 0 ? row : to * ring_rows_ + staged_to_[static_cast<std::size_t>(to)]++ % ring_rows_;
      copies_.push_back({rows + static_cast<std::size_t>(place) * hidden, in.x + static_cast<std::size_t>(row) * hidden,
                         static_cast<int>(to)});
    }
    done = upto;
  }
  for (std::size_t i = 0; i < copies_.size(); ++i) {
    const std::uint16_t* ahead = copies_[std::min(i + 1, copies_.size() - 1)].from;
    kernels().copy_row(copies_[i].to, copies_[i].from, hidden * sizeof(std::uint16_t), ahead);
    if (world_.is_far(copies_[i].rank)) {
      world_.put(world_.node_of(copies_[i].rank), copies_[i].to, hidden * sizeof(std::uint16_t));
    }
  }
}

// Rows that the caller wrote in place have to be sent from there.
void LowLatency::put_rows_in_place(const Pending& op, const CombineInput& in) const {
  const LowLatencyLayout at = layout(op.sizes);
  const auto row_bytes = static_cast<std::size_t>(op.sizes.hidden) * sizeof(std::uint16_t);
  const std::byte* rows = half(world_.rank(), op.epoch) + at.rows;
  for (std::int64_t cell = 0; cell < at.local * world_.ranks(); ++cell) {
    const auto to = static_cast<int>(cell % world_.ranks());
    if (!world_.is_far(to)) continue;
    const Range range = unpack(in.layout_range[cell]);
    const auto first = static_cast<std::size_t>(cell / world_.ranks() * at.slots + range.begin);
    world_.put(world_.node_of(to), rows + first * row_bytes, static_cast<std::size_t>(range.count) * row_bytes);
  }
}

// Publishes what the others must know of this rank's combine; no row yet.
LowLatency::Pending& LowLatency::post_combine(std::uint64_t epoch, const CombineInput& in, bool hooked,
                                              std::int64_t ring_rows) {
  const bool reduced = in.map_rows != nullptr;
  world_.control().ll_post[epoch & 1] = {
      Phase::combine,
      static_cast<std::int32_t>(in.tokens),
      static_cast<std::int32_t>(in.topk_count),
      static_cast<std::int32_t>(in.sizes.max_tokens),
      static_cast<std::int32_t>(in.sizes.hidden),
      static_cast<std::int32_t>(in.sizes.experts),
      0,
      0,
      0,
      reduced,
      hooked,
      static_cast<std::int32_t>(ring_rows),
  };
  epoch_ = epoch;
  Pending& op = pending_[epoch & 1];
  op.phase = Phase::combine;
  op.epoch = epoch;
  op.sizes = in.sizes;
  op.fp8 = false;
  op.weighted = reduced;
  op.tokens = in.tokens;
  op.topk_count = in.topk_count;
  world_.put_to_all(&world_.control().ll_post[epoch & 1], sizeof(LowLatencyPost));
  publish(epoch, kPosted);
  world_.ring_all();
  return op;
}

void LowLatency::check_offered(const CombineInput& in) const {
  if (in.zero_copy && offered_ != epoch_ + 1) {
    throw Misuse(
        "zero_copy: the rows must be in the buffer that get_next_low_latency_combine_buffer(handle) gave since "
        "the last low-latency operation");
  }
}

LowLatency::Pending& LowLatency::stage_combine(const CombineInput& in, bool hooked, std::uint16_t* out) {
  check_fits(in.sizes);
  check_topk(in.sizes, in.topk, in.tokens, in.topk_count, false);
  bool sorted = true;
  check_handle(in, sorted);
  check_offered(in);
  const std::uint64_t epoch = begin(Phase::combine);
  const LowLatencyLayout at = layout(in.sizes);
  const int ranks = world_.ranks();
  std::byte* const base = half(world_.rank(), epoch);
  const auto ranges_bytes = static_cast<std::size_t>(at.local * ranks) * sizeof(std::int64_t);
  std::memcpy(base + at.ranges, in.layout_range, ranges_bytes);
  world_.put_to_all(base + at.ranges, ranges_bytes);
  auto* src_info = reinterpret_cast<std::int32_t*>(base + at.src_info);
  for (std::int64_t cell = 0; cell < at.local * ranks; ++cell) {
    const Range range = unpack(in.layout_range[cell]);
    const std::int64_t first = cell / ranks * at.slots + range.begin;
    std::copy_n(in.src_info + first, range.count, src_info + first);
    const auto to = static_cast<int>(cell % ranks);
    if (world_.is_far(to)) {
      world_.put(world_.node_of(to), src_info + first, static_cast<std::size_t>(range.count) * sizeof(std::int32_t));
    }
  }
  ring_rows_ = hooked || in.zero_copy || !sorted ? 0 : plan_ring(in);
  Pending& op = post_combine(epoch, in, hooked, ring_rows_);
  op.own_rows = hooked || in.zero_copy ? nullptr : in.x;
  op.topk.assign(in.topk, in.topk + in.tokens * in.topk_count);
  op.weights.assign(in.weights, in.weights + in.tokens * in.topk_count);
  indexed_ = false;
  reduced_ = 0;
  const std::int64_t chunks = in.zero_copy ? 0 : chunk_count(in.sizes);
  cursor_.assign(static_cast<std::size_t>(in.sizes.experts), 0);
  staged_to_.assign(static_cast<std::size_t>(ranks), 0);
  if (ring_rows_ > 0) {
    // A peer that receives by a hook frees no place until the hook is called: then no rank uses its ring.
    check_peers(op);
    ring_rows_ = ring_rows_of(op, world_.rank());
  }
  for (std::int64_t chunk = 0; chunk < chunks;) {
    bool moved = false;
    const auto room = [&](int to) { return ring_rows_ == 0 || ring_has_room(op, chunk, to); };
    if (all_peers(room)) {
      stage_chunk(op, in, chunk, sorted);
      if (sorted) publish(op.epoch, chunk_progress(chunk));
      if (ring_rows_ > 0) world_.ring_all();
      ++chunk;
      moved = true;
    }
    // Reduce what has arrived while it is still in the caches, without waiting for anybody.
    if (!hooked && reduced_ < chunk && try_index(op) && chunk_arrived(op, reduced_)) {
      reduce_chunk(op, out);
      moved = true;
    }
    if (!moved) {
      world_.waiter().any(
          word(Phase::combine), [&] { return all_peers(room) || (reduced_ < chunk && chunk_arrived(op, reduced_)); },
          [&](int peer) { return room(peer) && peer_at(peer, op.epoch, chunk_progress(reduced_)); });
    }
  }
  if (in.zero_copy) put_rows_in_place(op, in);
  publish(op.epoch, kComplete);
  world_.ring_all();
  return op;
}

bool LowLatency::chunk_arrived(const Pending& op, std::int64_t chunk) const {
  return all_peers([&](int peer) { return peer_at(peer, op.epoch, chunk_progress(chunk)); });
}

// Ring places per destination of `owner` in this combine; 0: its rows are in place.
std::int64_t LowLatency::ring_rows_of(const Pending& op, int owner) const {
  for (int rank = 0; rank < world_.ranks(); ++rank) {
    if (world_.control(rank).ll_post[op.epoch & 1].hooked) return 0;
  }
  return world_.control(owner).ll_post[op.epoch & 1].ring_rows;
}

// Builds the index of the combine if every peer has posted, without waiting.
bool LowLatency::try_index(Pending& op) {
  if (!indexed_ && all_peers([&](int peer) { return peer_at(peer, op.epoch, kPosted); })) build_index(op);
  return indexed_;
}

// Finds the row of every (token, k): among the rows that its expert got from this rank, the j-th of that token answers
// the j-th selection of the expert by the token. Leaves indexed_ false when peers did not call alike.
void LowLatency::build_index(Pending& op) {
  const LowLatencyPost& mine = world_.control().ll_post[op.epoch & 1];
  for (int peer = 0; peer < world_.ranks(); ++peer) {
    const LowLatencyPost& theirs = world_.control(peer).ll_post[op.epoch & 1];
    if (mine.phase != theirs.phase || mine.max_tokens != theirs.max_tokens || mine.hidden != theirs.hidden ||
        mine.experts != theirs.experts || mine.weighted != theirs.weighted) {
      return;
    }
  }
  rows_.assign(static_cast<std::size_t>(op.tokens * op.topk_count), nullptr);
  ring_in_use_ = false;
  for (int owner = 0; owner < world_.ranks(); ++owner) {
    index_owner(op, owner);
    ring_in_use_ = ring_in_use_ || ring_rows_of(op, owner) > 0;
  }
  indexed_ = true;
}

void LowLatency::index_owner(const Pending& op, int owner) {
  const LowLatencyLayout at = layout(op.sizes);
  const int ranks = world_.ranks();
  const int self = world_.rank();
  const std::int64_t step = chunk_tokens(op.sizes);
  const std::byte* base = half(owner, op.epoch);
  const auto* ranges = reinterpret_cast<const std::int64_t*>(base + at.ranges);
  const auto* src_info = reinterpret_cast<const std::int32_t*>(base + at.src_info);
  const auto* rows = reinterpret_cast<const std::uint16_t*>(base + at.rows);
  const bool own = owner == self && op.own_rows != nullptr;
  const std::int64_t ring_rows = own ? 0 : ring_rows_of(op, owner);
  const auto for_each_row = [&](const auto& visit) {
    for (std::int64_t local = 0; local < at.local; ++local) {
      const Range range = unpack(ranges[local * ranks + self]);
      for (std::int64_t i = 0; i < range.count; ++i) visit(local, local * at.slots + range.begin + i);
    }
  };
  // In a ring rows are counted in the order in which stage_chunk puts them there: by chunk, local expert, row.
  next_.assign(static_cast<std::size_t>(chunk_count(op.sizes) + 1), 0);
  if (ring_rows > 0) {
    for_each_row(
        [&](std::int64_t, std::int64_t cell) { ++next_[static_cast<std::size_t>(src_info[cell] / step + 1)]; });
    for (std::size_t chunk = 1; chunk < next_.size(); ++chunk) next_[chunk] += next_[chunk - 1];
  }
  for_each_row([&](std::int64_t local, std::int64_t cell) {
    const std::int64_t token = src_info[cell];
    const std::uint16_t* row = (own ? op.own_rows : rows) + cell * op.sizes.hidden;
    if (ring_rows > 0) {
      const std::int64_t number = next_[static_cast<std::size_t>(token / step)]++;
      row = rows + (self * ring_rows + number % ring_rows) * op.sizes.hidden;
    }
    if (token >= op.tokens) return;
    const std::int64_t expert = owner * at.local + local;
    for (std::int64_t k = token * op.topk_count; k < (token + 1) * op.topk_count; ++k) {
      const std::uint16_t*& found = rows_[static_cast<std::size_t>(k)];
      if (op.topk[static_cast<std::size_t>(k)] == expert && found == nullptr) {
        found = row;
        return;
      }
    }
  });
}

// Reduces the next chunk of tokens into `out` and frees its places in the peers' rings.
void LowLatency::reduce_chunk(const Pending& op, std::uint16_t* out) {
  const std::int64_t step = chunk_tokens(op.sizes);
  const std::uint16_t* rows[kMaxTopk];
  float weights[kMaxTopk];
  for (std::int64_t t = reduced_ * step; t < std::min((reduced_ + 1) * step, op.tokens); ++t) {
    int count = 0;
    for (std::int64_t k = t * op.topk_count; k < (t + 1) * op.topk_count; ++k) {
      const auto at = static_cast<std::size_t>(k);
      if (rows_[at] == nullptr) continue;
      rows[count] = rows_[at];
      weights[count++] = op.weights[at];
    }
    kernels().weighted_sum_bf16(rows, weights, count, out + t * op.sizes.hidden,
                                static_cast<std::size_t>(op.sizes.hidden));
  }
  ++reduced_;
  if (!ring_in_use_) return;
  world_.publish(world_.control().ll_reduced, progress_word(op.epoch, static_cast<std::uint64_t>(reduced_)));
  world_.ring_all();
}

void LowLatency::receive_combine(Pending& op, std::uint16_t* out) {
  check_peers(op);
  if (!indexed_) build_index(op);
  while (reduced_ < chunk_count(op.sizes)) {
    const std::uint64_t wanted = chunk_progress(reduced_);
    world_.waiter().all(word(op.phase), [&](int peer) { return peer_at(peer, op.epoch, wanted); });
    reduce_chunk(op, out);
  }
  std::string unmatched;
  for (std::size_t k = 0; k < op.topk.size() && unmatched.empty(); ++k) {
    if (op.topk[k] >= 0 && rows_[k] == nullptr) {
      const auto width = static_cast<std::size_t>(op.topk_count);
      unmatched = "topk_idx[" + std::to_string(k / width) + ", " + std::to_string(k % width) + "]: expert " +
                  std::to_string(op.topk[k]) + " got no such row from this token in the dispatch of this handle";
    }
  }
  finish(op);
  if (!unmatched.empty()) throw WrongArgument(unmatched);
}

void LowLatency::combine(const CombineInput& in, std::uint16_t* out) {
  guarded(world_, [&] {
    if (in.map_rows != nullptr) {
      receive_reduced(stage_reduced(in, false), out);
    } else {
      receive_combine(stage_combine(in, false, out), out);
    }
  });
}

std::uint64_t LowLatency::combine_send(const CombineInput& in) {
  return guarded(world_, [&] {
    return (in.map_rows != nullptr ? stage_reduced(in, true) : stage_combine(in, true, nullptr)).epoch;
  });
}

void LowLatency::combine_receive(std::uint64_t epoch, std::uint16_t* out) {
  guarded(world_, [&] {
    Pending& op = pending(epoch, Phase::combine);
    if (op.weighted) return receive_reduced(op, out);
    indexed_ = false;
    reduced_ = 0;
    receive_combine(op, out);
  });
}

}  // namespace ep_core
