#include "low_latency.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "guard.hpp"
#include "kernels.hpp"

namespace ep_core {
namespace {

constexpr std::uint64_t kProgressBits = 16;
constexpr std::uint64_t kPosted = 1;
constexpr std::uint64_t kComplete = 0xffff;
constexpr std::int64_t kChunks = 16;

// From this many received bytes on, rows are written around the caches: they would not stay there anyway.
constexpr std::int64_t kStreamFromBytes = 4 << 20;

constexpr std::uint64_t progress_word(std::uint64_t epoch, std::uint64_t progress) {
  return epoch << kProgressBits | progress;
}

constexpr std::uint64_t chunk_progress(std::int64_t chunk) { return kPosted + 1 + static_cast<std::uint64_t>(chunk); }

std::int64_t chunk_tokens(const LowLatencySizes& sizes) { return (sizes.max_tokens + kChunks - 1) / kChunks; }

const char* name(Phase phase) { return phase == Phase::dispatch ? "low_latency_dispatch" : "low_latency_combine"; }

// The word that a timeout uses.
const char* word(Phase phase) { return phase == Phase::dispatch ? "dispatch" : "combine"; }

struct Range {
  std::int64_t begin;
  std::int64_t count;
};

Range unpack(std::int64_t range) { return {range >> 32, range & 0xffffffff}; }

}  // namespace

// Byte offsets within one half. Dispatch and combine never use the same half at once.
struct LowLatency::Layout {
  std::int64_t local;  // local experts
  std::int64_t slots;  // rows per local expert
  std::size_t topk;    // dispatch: int32 [tokens, topk]
  std::size_t staged;  // dispatch: rows of staged_row bytes
  std::size_t staged_row;
  std::size_t ranges;    // combine: int64 [local, ranks]
  std::size_t src_info;  // combine: int32 [local, slots]
  std::size_t rows;      // combine: bf16 [local, slots, hidden]
  std::size_t bytes;

  Layout(const LowLatencySizes& sizes, int ranks) {
    const auto tokens = static_cast<std::size_t>(sizes.max_tokens);
    const auto hidden = static_cast<std::size_t>(sizes.hidden);
    local = sizes.experts / ranks;
    slots = ranks * sizes.max_tokens;
    const auto cells = static_cast<std::size_t>(local * slots);
    topk = 0;
    staged = align_up(tokens * kMaxTopk * sizeof(std::int32_t), 64);
    staged_row = align_up(std::max(2 * hidden, hidden + hidden / kScaleBlock * sizeof(float)), 64);
    const std::size_t dispatch_bytes = staged + tokens * staged_row;
    ranges = 0;
    src_info = align_up(static_cast<std::size_t>(local * ranks) * sizeof(std::int64_t), 64);
    rows = align_up(src_info + cells * sizeof(std::int32_t), kPage);
    bytes = align_up(std::max(dispatch_bytes, rows + cells * hidden * sizeof(std::uint16_t)), kPage);
  }
};

std::int64_t LowLatency::size_hint(const LowLatencySizes& sizes, int ranks) {
  return static_cast<std::int64_t>(2 * Layout(sizes, ranks).bytes);
}

LowLatency::Layout LowLatency::layout(const LowLatencySizes& sizes) const { return Layout(sizes, world_.ranks()); }

std::byte* LowLatency::half(int rank, std::uint64_t epoch) const {
  const std::size_t stride = static_cast<std::size_t>(world_.rdma_bytes()) / 2 / kPage * kPage;
  return world_.low_latency(rank) + (epoch & 1) * stride;
}

void LowLatency::check_fits(const LowLatencySizes& sizes) const {
  const std::int64_t wanted = size_hint(sizes, world_.ranks());
  if (world_.rdma_bytes() < wanted) {
    throw WrongArgument("num_rdma_bytes: " + std::to_string(wanted) +
                        " are wanted for num_max_dispatch_tokens_per_rank=" + std::to_string(sizes.max_tokens) +
                        ", hidden=" + std::to_string(sizes.hidden) + ", num_experts=" + std::to_string(sizes.experts) +
                        " on " + std::to_string(world_.ranks()) +
                        " ranks (get_low_latency_rdma_size_hint), the Buffer was made with " +
                        std::to_string(world_.rdma_bytes()));
  }
}

void LowLatency::publish(std::uint64_t epoch, std::uint64_t progress) const {
  world_.control().ll_posted.value.store(progress_word(epoch, progress), std::memory_order_release);
}

bool LowLatency::peer_at(int peer, std::uint64_t epoch, std::uint64_t progress) const {
  return world_.control(peer).ll_posted.value.load(std::memory_order_acquire) >= progress_word(epoch, progress);
}

// Takes the next epoch once its half is free on this rank and read by all peers. Nothing is published yet.
std::uint64_t LowLatency::begin(Phase phase) {
  const std::uint64_t epoch = epoch_ + 1;
  if (pending_[epoch & 1].epoch != 0) {
    throw Misuse(std::string(name(phase)) +
                 ": the receive hook of the operation before the last has not been called; " +
                 "at most two operations can be open");
  }
  const std::uint64_t before = epoch > 2 ? epoch - 2 : 0;
  world_.waiter().all(word(phase), [&](int peer) {
    return world_.control(peer).ll_done[epoch & 1].value.load(std::memory_order_acquire) >= before;
  });
  return epoch;
}

void LowLatency::finish(Pending& op) {
  world_.control().ll_done[op.epoch & 1].value.store(op.epoch, std::memory_order_release);
  world_.ring_all();
  op.epoch = 0;
}

void LowLatency::check_peers(const Pending& op) {
  world_.waiter().all(word(op.phase), [&](int peer) { return peer_at(peer, op.epoch, kPosted); });
  const LowLatencyPost& mine = world_.control().ll_post[op.epoch & 1];
  for (int peer = 0; peer < world_.ranks(); ++peer) {
    const LowLatencyPost& theirs = world_.control(peer).ll_post[op.epoch & 1];
    std::string differs;
    const auto compare = [&](const char* what, std::int64_t a, std::int64_t b) {
      if (a != b && differs.empty()) {
        differs = std::string(what) + ": rank " + std::to_string(peer) + " gave " + std::to_string(b) + ", this rank " +
                  std::to_string(a);
      }
    };
    if (mine.phase != theirs.phase) {
      differs = "rank " + std::to_string(peer) + " called " + name(theirs.phase) + ", this rank " + name(mine.phase);
    }
    compare("num_max_dispatch_tokens_per_rank", mine.max_tokens, theirs.max_tokens);
    compare("hidden", mine.hidden, theirs.hidden);
    compare("num_experts", mine.experts, theirs.experts);
    compare("use_fp8", mine.fp8, theirs.fp8);
    compare("round_scale", mine.round_scale, theirs.round_scale);
    if (!differs.empty()) {
      finish(pending_[op.epoch & 1]);
      throw WrongArgument(differs + "; all ranks must call alike");
    }
  }
}

void LowLatency::check_topk(const LowLatencySizes& sizes, const std::int64_t* topk, std::int64_t tokens,
                            std::int64_t topk_count, bool dispatching) {
  selections_.assign(static_cast<std::size_t>(sizes.experts), 0);
  for (std::int64_t i = 0; i < tokens * topk_count; ++i) {
    const std::int64_t expert = topk[i];
    if (expert < -1 || expert >= sizes.experts) {
      throw WrongArgument("topk_idx[" + std::to_string(i / topk_count) + ", " + std::to_string(i % topk_count) +
                          "]: wanted -1 or an expert below " + std::to_string(sizes.experts) + ", got " +
                          std::to_string(expert));
    }
    if (expert < 0) continue;
    if (++selections_[static_cast<std::size_t>(expert)] > sizes.max_tokens && dispatching) {
      throw WrongArgument("topk_idx: expert " + std::to_string(expert) +
                          " is selected more often than num_max_dispatch_tokens_per_rank=" +
                          std::to_string(sizes.max_tokens) + " by this rank, which is all its receive buffer holds");
    }
  }
}

LowLatency::Pending& LowLatency::pending(std::uint64_t epoch, Phase phase) {
  Pending& op = pending_[epoch & 1];
  if (epoch == 0 || op.epoch != epoch || op.phase != phase) {
    throw Misuse(std::string(name(phase)) + ": this receive hook was already called");
  }
  return op;
}

LowLatency::Pending& LowLatency::stage_dispatch(const DispatchInput& in, bool hooked) {
  check_fits(in.sizes);
  check_topk(in.sizes, in.topk, in.tokens, in.topk_count, true);
  const std::uint64_t epoch = begin(Phase::dispatch);
  const Layout at = layout(in.sizes);
  std::byte* const base = half(world_.rank(), epoch);

  auto* topk = reinterpret_cast<std::int32_t*>(base + at.topk);
  for (std::int64_t i = 0; i < in.tokens * in.topk_count; ++i) topk[i] = static_cast<std::int32_t>(in.topk[i]);
  world_.control().ll_post[epoch & 1] = {
      Phase::dispatch,
      static_cast<std::int32_t>(in.tokens),
      static_cast<std::int32_t>(in.topk_count),
      static_cast<std::int32_t>(in.sizes.max_tokens),
      static_cast<std::int32_t>(in.sizes.hidden),
      static_cast<std::int32_t>(in.sizes.experts),
      in.fp8,
      in.round_scale,
  };
  epoch_ = epoch;
  Pending& op = pending_[epoch & 1];
  op.phase = Phase::dispatch;
  op.epoch = epoch;
  op.sizes = in.sizes;
  op.fp8 = in.fp8;
  op.own_rows = hooked || in.fp8 ? nullptr : in.x;
  publish(epoch, kPosted);

  const std::int64_t first_own = world_.rank() * at.local;
  const auto hidden = static_cast<std::size_t>(in.sizes.hidden);
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    const std::int32_t* experts = topk + t * in.topk_count;
    const bool staged = std::any_of(experts, experts + in.topk_count, [&](std::int32_t expert) {
      return expert >= 0 && (op.own_rows == nullptr || expert < first_own || expert >= first_own + at.local);
    });
    if (!staged) continue;
    std::byte* row = base + at.staged + static_cast<std::size_t>(t) * at.staged_row;
    const std::uint16_t* from = in.x + static_cast<std::size_t>(t) * hidden;
    if (in.fp8) {
      kernels().quantise_e4m3(from, reinterpret_cast<std::uint8_t*>(row), reinterpret_cast<float*>(row + hidden),
                              hidden, in.round_scale);
    } else {
      std::memcpy(row, from, hidden * sizeof(std::uint16_t));
    }
  }
  publish(epoch, kComplete);
  world_.ring_all();
  return op;
}

void LowLatency::receive_dispatch(Pending& op, const DispatchOutput& out) {
  check_peers(op);
  const Layout at = layout(op.sizes);
  const int ranks = world_.ranks();
  const std::int64_t first = world_.rank() * at.local;
  const auto hidden = static_cast<std::size_t>(op.sizes.hidden);
  const std::size_t row_bytes = hidden * (op.fp8 ? 1 : sizeof(std::uint16_t));

  const auto for_each_row = [&](int source, const auto& visit) {
    const LowLatencyPost& post = world_.control(source).ll_post[op.epoch & 1];
    const auto* topk = reinterpret_cast<const std::int32_t*>(half(source, op.epoch) + at.topk);
    for (std::int32_t t = 0; t < post.tokens; ++t) {
      for (std::int32_t k = 0; k < post.topk; ++k) {
        const std::int64_t local = *topk++ - first;
        if (local >= 0 && local < at.local) visit(t, local);
      }
    }
  };

  counts_.assign(static_cast<std::size_t>(at.local * ranks), 0);
  for (int source = 0; source < ranks; ++source) {
    for_each_row(
        source, [&](std::int32_t, std::int64_t local) { ++counts_[static_cast<std::size_t>(local * ranks + source)]; });
  }
  cursor_.resize(counts_.size());
  std::int64_t received = 0;
  for (std::int64_t local = 0; local < at.local; ++local) {
    std::int32_t begin = 0;
    for (int source = 0; source < ranks; ++source) {
      const auto cell = static_cast<std::size_t>(local * ranks + source);
      cursor_[cell] = begin;
      out.layout_range[cell] = static_cast<std::int64_t>(begin) << 32 | counts_[cell];
      begin += counts_[cell];
    }
    out.count[local] = begin;
    if (out.stats != nullptr) out.stats[local] += begin;
    received += begin;
  }
  if (op.fp8) scale_rows_.assign(static_cast<std::size_t>(at.local * at.slots), nullptr);

  const bool stream = received * static_cast<std::int64_t>(row_bytes) >= kStreamFromBytes;
  // Own rows first, while peers are still staging theirs.
  for (int step = 0; step < ranks; ++step) {
    const int source = (world_.rank() + step) % ranks;
    if (source != world_.rank()) {
      world_.waiter().one(word(op.phase), source, [&](int peer) { return peer_at(peer, op.epoch, kComplete); });
    }
    const std::byte* rows = half(source, op.epoch) + at.staged;
    std::size_t row_stride = at.staged_row;
    if (source == world_.rank() && op.own_rows != nullptr) {
      rows = reinterpret_cast<const std::byte*>(op.own_rows);
      row_stride = row_bytes;
    }
    for_each_row(source, [&](std::int32_t token, std::int64_t local) {
      const std::int64_t slot = cursor_[static_cast<std::size_t>(local * ranks + source)]++;
      const auto cell = static_cast<std::size_t>(local * at.slots + slot);
      const std::byte* row = rows + static_cast<std::size_t>(token) * row_stride;
      if (stream) {
        kernels().stream_copy(out.x + cell * row_bytes, row, row_bytes);
      } else {
        std::memcpy(out.x + cell * row_bytes, row, row_bytes);
      }
      out.src_info[cell] = token;
      if (op.fp8) scale_rows_[cell] = reinterpret_cast<const float*>(row + hidden);
    });
  }
  if (stream) store_fence();

  if (op.fp8) {
    const auto blocks = static_cast<std::int64_t>(hidden / kScaleBlock);
    for (std::int64_t local = 0; local < at.local; ++local) {
      const float* const* from = scale_rows_.data() + local * at.slots;
      for (std::int64_t block = 0; block < blocks; ++block) {
        float* to = out.scales + (local * blocks + block) * at.slots;
        for (std::int32_t slot = 0; slot < out.count[local]; ++slot) to[slot] = from[slot][block];
      }
    }
  }
  finish(op);
}

void LowLatency::check_handle(const CombineInput& in, bool& sorted) const {
  const Layout at = layout(in.sizes);
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

LowLatency::Pending& LowLatency::stage_combine(const CombineInput& in, bool hooked, std::uint16_t* out) {
  check_fits(in.sizes);
  check_topk(in.sizes, in.topk, in.tokens, in.topk_count, false);
  bool sorted = true;
  check_handle(in, sorted);
  if (in.zero_copy && offered_ != epoch_ + 1) {
    throw Misuse(
        "zero_copy: the rows must be in the buffer that get_next_low_latency_combine_buffer(handle) gave since "
        "the last low-latency operation");
  }
  const std::uint64_t epoch = begin(Phase::combine);
  const Layout at = layout(in.sizes);
  const int ranks = world_.ranks();
  std::byte* const base = half(world_.rank(), epoch);

  auto* ranges = reinterpret_cast<std::int64_t*>(base + at.ranges);
  auto* src_info = reinterpret_cast<std::int32_t*>(base + at.src_info);
  auto* staged = reinterpret_cast<std::uint16_t*>(base + at.rows);
  std::memcpy(ranges, in.layout_range, static_cast<std::size_t>(at.local * ranks) * sizeof(std::int64_t));
  for (std::int64_t cell = 0; cell < at.local * ranks; ++cell) {
    const Range range = unpack(ranges[cell]);
    const std::int64_t at_row = cell / ranks * at.slots + range.begin;
    std::copy_n(in.src_info + at_row, range.count, src_info + at_row);
  }
  world_.control().ll_post[epoch & 1] = {
      Phase::combine,
      static_cast<std::int32_t>(in.tokens),
      static_cast<std::int32_t>(in.topk_count),
      static_cast<std::int32_t>(in.sizes.max_tokens),
      static_cast<std::int32_t>(in.sizes.hidden),
      static_cast<std::int32_t>(in.sizes.experts),
      0,
      0,
  };
  epoch_ = epoch;
  Pending& op = pending_[epoch & 1];
  op.phase = Phase::combine;
  op.epoch = epoch;
  op.sizes = in.sizes;
  op.fp8 = false;
  op.own_rows = hooked || in.zero_copy ? nullptr : in.x;
  op.tokens = in.tokens;
  op.topk_count = in.topk_count;
  op.topk.assign(in.topk, in.topk + in.tokens * in.topk_count);
  op.weights.assign(in.weights, in.weights + in.tokens * in.topk_count);
  indexed_ = false;
  reduced_ = 0;
  publish(epoch, kPosted);

  if (!in.zero_copy) {
    const std::int64_t step = chunk_tokens(in.sizes);
    const auto hidden = static_cast<std::size_t>(in.sizes.hidden);
    cursor_.assign(static_cast<std::size_t>(at.local * ranks), 0);
    for (std::int64_t chunk = 0; chunk * step < in.sizes.max_tokens; ++chunk) {
      // Rows that are not sorted by token cannot be found by chunk: then all go with the last one.
      const std::int64_t end = sorted ? (chunk + 1) * step : (chunk + 1) * step < in.sizes.max_tokens ? 0 : INT32_MAX;
      for (std::int64_t cell = 0; cell < at.local * ranks; ++cell) {
        if (cell % ranks == world_.rank() && op.own_rows != nullptr) continue;
        const Range range = unpack(ranges[cell]);
        const std::int64_t first = cell / ranks * at.slots + range.begin;
        std::int32_t& done = cursor_[static_cast<std::size_t>(cell)];
        std::int32_t upto = done;
        while (upto < range.count && src_info[first + upto] < end) ++upto;
        if (upto == done) continue;
        const auto row = static_cast<std::size_t>(first + done) * hidden;
        std::memcpy(staged + row, in.x + row, static_cast<std::size_t>(upto - done) * hidden * sizeof(std::uint16_t));
        done = upto;
      }
      if (!sorted) continue;
      publish(epoch, chunk_progress(chunk));
      if (!hooked && try_index(op)) {
        // Reduce what has arrived while it is still in the caches, without waiting for anybody.
        const auto arrived = [&](std::int64_t next) {
          for (int peer = 0; peer < ranks; ++peer) {
            if (peer != world_.rank() && !peer_at(peer, epoch, chunk_progress(next))) return false;
          }
          return true;
        };
        while (reduced_ < (chunk + 1) * step && arrived(reduced_ / step)) {
          reduce(op, reduced_, reduced_ + step, out);
          reduced_ += step;
        }
      }
    }
  }
  publish(epoch, kComplete);
  world_.ring_all();
  return op;
}

// Builds the index of the combine if every peer has posted, without waiting.
bool LowLatency::try_index(Pending& op) {
  for (int peer = 0; peer < world_.ranks() && !indexed_; ++peer) {
    if (peer != world_.rank() && !peer_at(peer, op.epoch, kPosted)) return false;
  }
  if (!indexed_) build_index(op);
  return indexed_;
}

// Finds the row of every (token, k): among the rows that its expert got from this rank, the j-th of that token answers
// the j-th selection of the expert by the token. Leaves indexed_ false when peers did not call alike.
void LowLatency::build_index(Pending& op) {
  const LowLatencyPost& mine = world_.control().ll_post[op.epoch & 1];
  for (int peer = 0; peer < world_.ranks(); ++peer) {
    const LowLatencyPost& theirs = world_.control(peer).ll_post[op.epoch & 1];
    if (mine.phase != theirs.phase || mine.max_tokens != theirs.max_tokens || mine.hidden != theirs.hidden ||
        mine.experts != theirs.experts) {
      return;
    }
  }
  const Layout at = layout(op.sizes);
  const int ranks = world_.ranks();
  const int self = world_.rank();
  rows_.assign(static_cast<std::size_t>(op.tokens * op.topk_count), nullptr);
  for (int owner = 0; owner < ranks; ++owner) {
    const std::byte* base = half(owner, op.epoch);
    const auto* ranges = reinterpret_cast<const std::int64_t*>(base + at.ranges);
    const auto* src_info = reinterpret_cast<const std::int32_t*>(base + at.src_info);
    const auto* rows = reinterpret_cast<const std::uint16_t*>(base + at.rows);
    if (owner == self && op.own_rows != nullptr) rows = op.own_rows;
    for (std::int64_t local = 0; local < at.local; ++local) {
      const Range range = unpack(ranges[local * ranks + self]);
      const std::int64_t expert = owner * at.local + local;
      for (std::int64_t i = 0; i < range.count; ++i) {
        const std::int64_t cell = local * at.slots + range.begin + i;
        const std::int64_t token = src_info[cell];
        if (token >= op.tokens) continue;
        for (std::int64_t k = token * op.topk_count; k < (token + 1) * op.topk_count; ++k) {
          const std::uint16_t*& row = rows_[static_cast<std::size_t>(k)];
          if (op.topk[static_cast<std::size_t>(k)] == expert && row == nullptr) {
            row = rows + cell * op.sizes.hidden;
            break;
          }
        }
      }
    }
  }
  indexed_ = true;
}

void LowLatency::reduce(const Pending& op, std::int64_t begin, std::int64_t end, std::uint16_t* out) const {
  const std::uint16_t* rows[kMaxTopk];
  float weights[kMaxTopk];
  for (std::int64_t t = begin; t < std::min(end, op.tokens); ++t) {
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
}

void LowLatency::receive_combine(Pending& op, std::uint16_t* out) {
  check_peers(op);
  if (!indexed_) build_index(op);
  const std::int64_t step = chunk_tokens(op.sizes);
  while (reduced_ < op.sizes.max_tokens) {
    const std::uint64_t wanted = chunk_progress(reduced_ / step);
    world_.waiter().all(word(op.phase), [&](int peer) { return peer_at(peer, op.epoch, wanted); });
    reduce(op, reduced_, reduced_ + step, out);
    reduced_ += step;
  }
  // A zero-token rank, too, must have read nothing that is still being written.
  world_.waiter().all(word(op.phase), [&](int peer) { return peer_at(peer, op.epoch, kComplete); });
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

void LowLatency::dispatch(const DispatchInput& in, const DispatchOutput& out) {
  guarded(world_, [&] { receive_dispatch(stage_dispatch(in, false), out); });
}

std::uint64_t LowLatency::dispatch_send(const DispatchInput& in) {
  return guarded(world_, [&] { return stage_dispatch(in, true).epoch; });
}

void LowLatency::dispatch_receive(std::uint64_t epoch, const DispatchOutput& out) {
  guarded(world_, [&] { receive_dispatch(pending(epoch, Phase::dispatch), out); });
}

void LowLatency::combine(const CombineInput& in, std::uint16_t* out) {
  guarded(world_, [&] { receive_combine(stage_combine(in, false, out), out); });
}

std::uint64_t LowLatency::combine_send(const CombineInput& in) {
  return guarded(world_, [&] { return stage_combine(in, true, nullptr).epoch; });
}

void LowLatency::combine_receive(std::uint64_t epoch, std::uint16_t* out) {
  guarded(world_, [&] {
    Pending& op = pending(epoch, Phase::combine);
    indexed_ = false;
    reduced_ = 0;
    receive_combine(op, out);
  });
}

}  // namespace ep_core
