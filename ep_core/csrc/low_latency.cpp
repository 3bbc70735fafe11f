#include "low_latency.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "guard.hpp"
#include "kernels.hpp"

namespace ep_core {
std::int64_t LowLatency::size_hint(const LowLatencySizes& sizes, int ranks) {
  return static_cast<std::int64_t>(2 * LowLatencyLayout(sizes, ranks).bytes);
}

LowLatencyLayout LowLatency::layout(const LowLatencySizes& sizes) const {
  return LowLatencyLayout(sizes, world_.ranks());
}

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
  world_.publish(world_.control().ll_posted, progress_word(epoch, progress));
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
  world_.publish(world_.control().ll_done[op.epoch & 1], op.epoch);
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
    compare("use_ue8m0", mine.ue8m0, theirs.ue8m0);
    if (mine.weighted != theirs.weighted && differs.empty()) {
      const auto given = [&](const LowLatencyPost& post) {
        if (post.phase == Phase::dispatch) return post.weighted ? "some" : "none";
        return post.weighted ? "one of a dispatch with topk_weights" : "one of a dispatch without topk_weights";
      };
      differs = std::string(mine.phase == Phase::dispatch ? "topk_weights" : "handle") + ": rank " +
                std::to_string(peer) + " gave " + given(theirs) + ", this rank " + given(mine);
    }
    if (mine.phase == Phase::dispatch && mine.weighted) compare("selections for each token", mine.topk, theirs.topk);
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
  const LowLatencyLayout at = layout(in.sizes);
  std::byte* const base = half(world_.rank(), epoch);

  auto* topk = reinterpret_cast<std::int32_t*>(base + at.topk);
  for (std::int64_t i = 0; i < in.tokens * in.topk_count; ++i) topk[i] = static_cast<std::int32_t>(in.topk[i]);
  if (in.weighted) {
    std::copy_n(in.weights, in.tokens * in.topk_count, reinterpret_cast<float*>(base + at.weights));
  }
  world_.control().ll_post[epoch & 1] = {
      Phase::dispatch,
      static_cast<std::int32_t>(in.tokens),
      static_cast<std::int32_t>(in.topk_count),
      static_cast<std::int32_t>(in.sizes.max_tokens),
      static_cast<std::int32_t>(in.sizes.hidden),
      static_cast<std::int32_t>(in.sizes.experts),
      in.fp8,
      in.round_scale,
      in.ue8m0,
      in.weighted,
      hooked,
      0,
  };
  epoch_ = epoch;
  Pending& op = pending_[epoch & 1];
  op.phase = Phase::dispatch;
  op.epoch = epoch;
  op.sizes = in.sizes;
  op.fp8 = in.fp8;
  op.ue8m0 = in.ue8m0;
  op.weighted = in.weighted;
  op.topk_count = in.topk_count;
  op.own_rows = hooked || in.fp8 ? nullptr : in.x;
  const auto selections = static_cast<std::size_t>(in.tokens * in.topk_count);
  world_.put_to_all(&world_.control().ll_post[epoch & 1], sizeof(LowLatencyPost));
  world_.put_to_all(topk, selections * sizeof(std::int32_t));
  if (in.weighted) world_.put_to_all(base + at.weights, selections * sizeof(float));
  publish(epoch, kPosted);

  const std::int64_t first_own = world_.rank() * at.local;
  const auto hidden = static_cast<std::size_t>(in.sizes.hidden);
  const std::size_t row_bytes = in.fp8 ? hidden + hidden / kScaleBlock * sizeof(float) : hidden * sizeof(std::uint16_t);
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
    world_.for_each_far_node([&](Node node) {
      const bool wanted = std::any_of(experts, experts + in.topk_count, [&](std::int32_t expert) {
        return expert >= 0 && world_.node_of(static_cast<int>(expert / at.local)) == node;
      });
      if (wanted) world_.put(node, row, row_bytes);
    });
  }
  publish(epoch, kComplete);
  world_.ring_all();
  return op;
}

void LowLatency::receive_dispatch(Pending& op, const DispatchOutput& out) {
  check_peers(op);
  const LowLatencyLayout at = layout(op.sizes);
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
        if (local >= 0 && local < at.local) visit(t, k, local);
      }
    }
  };

  counts_.assign(static_cast<std::size_t>(at.local * ranks), 0);
  for (int source = 0; source < ranks; ++source) {
    for_each_row(source, [&](std::int32_t, std::int32_t, std::int64_t local) {
      ++counts_[static_cast<std::size_t>(local * ranks + source)];
    });
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
  if (op.weighted) std::fill_n(out.map_rows, at.slots * op.topk_count, -1);

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
    const auto* weights = reinterpret_cast<const float*>(half(source, op.epoch) + at.weights);
    for_each_row(source, [&](std::int32_t token, std::int32_t k, std::int64_t local) {
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
      if (op.weighted) {
        const std::int64_t to = (source * op.sizes.max_tokens + token) * op.topk_count + k;
        out.map_rows[to] = static_cast<std::int32_t>(cell);
        out.map_weights[to] = weights[token * op.topk_count + k];
      }
    });
  }
  if (stream) store_fence();

  if (op.fp8) write_scales(op, out);
  finish(op);
}

// The scales of the rows that scale_rows_ names: as they are, or four exponents to a word, the first in the lowest
// byte.
void LowLatency::write_scales(const Pending& op, const DispatchOutput& out) const {
  const LowLatencyLayout at = layout(op.sizes);
  const std::int64_t packed = op.ue8m0 ? 4 : 1;
  const std::int64_t words = op.sizes.hidden / kScaleBlock / packed;
  for (std::int64_t local = 0; local < at.local; ++local) {
    const float* const* from = scale_rows_.data() + local * at.slots;
    for (std::int64_t word = 0; word < words; ++word) {
      std::byte* to = out.scales + (local * words + word) * at.slots * static_cast<std::int64_t>(sizeof(float));
      for (std::int32_t slot = 0; slot < out.count[local]; ++slot, to += sizeof(float)) {
        std::uint32_t bits = std::bit_cast<std::uint32_t>(from[slot][word]);
        if (op.ue8m0) {
          bits = 0;
          for (std::int64_t i = 0; i < packed; ++i) {
            bits |= (std::bit_cast<std::uint32_t>(from[slot][word * packed + i]) >> 23 & 0xff) << (8 * i);
          }
        }
        std::memcpy(to, &bits, sizeof(bits));
      }
    }
  }
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

}  // namespace ep_core
