#include "high_throughput.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "guard.hpp"
#include "high_throughput_chunks.hpp"
#include "kernels.hpp"

namespace ep_core {
namespace {

// Chunks stay in the caches between their writer and their readers.
constexpr std::int64_t kChunkBytes = 256 << 10;

}  // namespace

HighThroughput::HighThroughput(World& world)
    : world_(world), taken_(static_cast<std::size_t>(world.ranks()), 0), position_(taken_.size(), 0) {}

std::int64_t HighThroughput::least_bytes(std::int64_t row_bytes, std::int64_t extra_bytes, int ranks) {
  const std::size_t head = align_up(static_cast<std::size_t>(extra_bytes), 16);
  const std::size_t record = align_up(head + static_cast<std::size_t>(row_bytes), 64);
  return kRingSlots * static_cast<std::int64_t>(align_up(72 + record * static_cast<std::size_t>(ranks), 64));
}

// `lanes` rows for each token of a chunk: 1 in dispatch, one per destination in combine.
HighThroughput::Geometry HighThroughput::geometry(std::int64_t row_bytes, std::int64_t extra_bytes,
                                                  std::int64_t lanes) const {
  Geometry at{};
  at.head = align_up(static_cast<std::size_t>(extra_bytes), 16);
  at.record = align_up(at.head + static_cast<std::size_t>(row_bytes), 64);
  const std::int64_t slot_bytes = world_.nvl_bytes() / kRingSlots / 64 * 64;
  const std::int64_t per_token = static_cast<std::int64_t>(at.record) * lanes + 8;
  at.tokens = std::min((slot_bytes - 64) / per_token, std::max<std::int64_t>(kChunkBytes / per_token, 1));
  if (at.tokens < 1) {
    throw WrongArgument(
        "num_nvl_bytes: at least " + std::to_string(least_bytes(row_bytes, extra_bytes, world_.ranks())) +
        " are wanted for rows of " + std::to_string(row_bytes) + " bytes with " + std::to_string(extra_bytes) +
        " bytes of scales, top-k and weights on " + std::to_string(world_.ranks()) +
        " ranks, the Buffer was made with " + std::to_string(world_.nvl_bytes()));
  }
  at.records = align_up(static_cast<std::size_t>(at.tokens) * sizeof(std::uint64_t), 64);
  return at;
}

std::byte* HighThroughput::slot(int rank, std::uint64_t chunk) const {
  const auto stride = static_cast<std::size_t>(world_.nvl_bytes()) / kRingSlots / 64 * 64;
  return world_.high_throughput(rank) + chunk % kRingSlots * stride;
}

// Publishes the post of the next operation and waits for every peer's.
void HighThroughput::begin(Phase phase, const HighThroughputPost& post, const std::int32_t* per_expert) {
  const std::uint64_t op = op_ + 1;
  const std::uint64_t before = op > 2 ? op - 2 : 0;
  world_.waiter().all(word(phase), [&](int peer) {
    return world_.control(peer).ht_done.value.load(std::memory_order_acquire) >= before;
  });
  world_.control().ht_post[op & 1] = post;
  world_.put_to_all(&world_.control().ht_post[op & 1], sizeof(post));
  if (per_expert != nullptr) {
    std::int32_t* experts = world_.control().ht_experts[op & 1];
    std::copy_n(per_expert, post.experts, experts);
    world_.put_to_all(experts, static_cast<std::size_t>(post.experts) * sizeof(std::int32_t));
  }
  op_ = op;
  world_.publish(world_.control().ht_posted, op);
  world_.ring_all();
  world_.waiter().all(word(phase), [&](int peer) {
    return world_.control(peer).ht_posted.value.load(std::memory_order_acquire) >= op;
  });
  check_posts(phase);
}

void HighThroughput::check_posts(Phase phase) {
  const HighThroughputPost& mine = post(world_.rank());
  for (int peer = 0; peer < world_.ranks(); ++peer) {
    const HighThroughputPost& theirs = post(peer);
    std::string differs;
    const auto compare = [&](const char* what, std::int64_t a, std::int64_t b) {
      if (a != b && differs.empty()) {
        differs = std::string(what) + ": rank " + std::to_string(peer) + " gave " + std::to_string(b) + ", this rank " +
                  std::to_string(a);
      }
    };
    if (mine.phase != theirs.phase) {
      differs = "rank " + std::to_string(peer) + " called " + word(theirs.phase) + ", this rank " + word(phase);
    }
    compare("handle (1: given)", mine.cached, theirs.cached);
    compare("x (bytes per row)", mine.row_bytes, theirs.row_bytes);
    compare("x (scales per row)", mine.scales, theirs.scales);
    compare("topk_idx (selections per token)", mine.topk, theirs.topk);
    compare("num_tokens_per_expert (experts)", mine.experts, theirs.experts);
    if (!differs.empty()) {
      finish();
      throw WrongArgument(differs + "; all ranks must call alike");
    }
  }
}

// Every rank sees whether any rank has too little space, so that all give up together.
void HighThroughput::check_room() {
  for (int to = 0; to < world_.ranks(); ++to) {
    std::int64_t rows = 0;
    for (int source = 0; source < world_.ranks(); ++source) rows += post(source).to_rank[to];
    if (post(to).room > 0 && rows > post(to).room) {
      finish();
      throw WrongArgument("num_worst_tokens: rank " + std::to_string(to) + " receives " + std::to_string(rows) +
                          " rows and gave " + std::to_string(post(to).room));
    }
  }
}

void HighThroughput::finish() {
  world_.publish(world_.control().ht_done, op_);
  world_.ring_all();
}

// Whether `peer` has taken what the slot of this rank's next chunk held.
bool HighThroughput::slot_free_of(int peer) const {
  const std::uint64_t taken = world_.control(peer).ht_taken[world_.rank()].value.load(std::memory_order_acquire);
  return taken + kRingSlots > staged_;
}

bool HighThroughput::slot_free() const {
  for (int peer = 0; peer < world_.ranks(); ++peer) {
    if (peer != world_.rank() && !slot_free_of(peer)) return false;
  }
  return true;
}

bool HighThroughput::has_staged(int peer, std::uint64_t chunks) const {
  return world_.control(peer).ht_staged.value.load(std::memory_order_acquire) >= chunks;
}

void HighThroughput::publish_staged() {
  world_.publish(world_.control().ht_staged, ++staged_);
  world_.ring_all();
}

void HighThroughput::publish_taken(int source) {
  const std::uint64_t taken = ++taken_[static_cast<std::size_t>(source)];
  world_.publish_to(source, world_.control().ht_taken[source], taken);
  world_.ring_one(source);
}

HtCounts HighThroughput::dispatch_begin(const HtDispatchInput& in) {
  return guarded(world_, [&] {
    if (open_) throw Misuse("dispatch: the dispatch before was not finished");
    const int ranks = world_.ranks();
    const std::int64_t extra = head_bytes(in.scales_per_row, 2 * in.topk_count);
    // Combine of the same rows must fit too, so it is checked now, when nothing has been sent.
    geometry(in.row_bytes, extra, ranks);
    const Geometry at = geometry(in.row_bytes, extra, 1);

    HighThroughputPost post{};
    post.phase = Phase::dispatch;
    post.tokens = static_cast<std::int32_t>(in.tokens);
    post.row_bytes = static_cast<std::int32_t>(in.row_bytes);
    post.scales = static_cast<std::int32_t>(in.scales_per_row);
    post.topk = static_cast<std::int32_t>(in.topk_count);
    post.experts = static_cast<std::int32_t>(in.experts);
    post.cached = in.per_rank == nullptr;
    post.room = static_cast<std::int32_t>(in.room);
    for (std::int64_t t = 0; t < in.tokens; ++t) {
      for (int r = 0; r < ranks; ++r) post.to_rank[r] += in.in_rank[t * ranks + r];
    }
    for (int r = 0; r < ranks; ++r) {
      const std::int32_t* prefix = in.cached_prefix;
      const std::int32_t wanted = in.per_rank != nullptr ? in.per_rank[r]
                                  : world_.rank() == 0
                                      ? prefix[r]
                                      : prefix[world_.rank() * ranks + r] - prefix[(world_.rank() - 1) * ranks + r];
      if (wanted != post.to_rank[r]) {
        throw WrongArgument(std::string(in.per_rank != nullptr ? "num_tokens_per_rank[" : "handle: tokens for rank [") +
                            std::to_string(r) + "]: is_token_in_rank has " + std::to_string(post.to_rank[r]) +
                            " tokens for that rank, got " + std::to_string(wanted));
      }
    }
    const std::int64_t local = in.experts / ranks;
    for (std::int64_t i = 0; i < in.tokens * in.topk_count; ++i) {
      const std::int64_t expert = in.topk[i];
      const auto where = [&] {
        return "topk_idx[" + std::to_string(i / in.topk_count) + ", " + std::to_string(i % in.topk_count) + "]: ";
      };
      if (expert < -1 || expert >= in.experts) {
        throw WrongArgument(where() + "wanted -1 or an expert below " + std::to_string(in.experts) + ", got " +
                            std::to_string(expert));
      }
      if (expert >= 0 && !in.in_rank[i / in.topk_count * ranks + expert / local]) {
        throw WrongArgument(where() + "expert " + std::to_string(expert) + " is on rank " +
                            std::to_string(expert / local) + ", to which is_token_in_rank does not send the token");
      }
    }

    begin(Phase::dispatch, post, in.per_expert);
    check_room();
    in_ = in;
    geometry_ = at;
    node_masks_.assign(static_cast<std::size_t>(ranks), 0);
    for (int r = 0; r < ranks; ++r) node_masks_[static_cast<std::size_t>(world_.node_of(r))] |= std::uint64_t{1} << r;
    open_ = true;
    HtCounts counts;
    counts.rank_prefix.assign(static_cast<std::size_t>(ranks * ranks), 0);
    for (int source = 0; source < ranks; ++source) {
      for (int r = 0; r < ranks; ++r) {
        const auto cell = static_cast<std::size_t>(source * ranks + r);
        counts.rank_prefix[cell] = this->post(source).to_rank[r] + (source > 0 ? counts.rank_prefix[cell - ranks] : 0);
      }
      position_[static_cast<std::size_t>(source)] = counts.received;
      counts.received += this->post(source).to_rank[world_.rank()];
    }
    if (in.per_expert != nullptr) {
      counts.per_expert.assign(static_cast<std::size_t>(local), 0);
      for (int source = 0; source < ranks; ++source) {
        const std::int32_t* theirs = world_.control(source).ht_experts[op_ & 1] + world_.rank() * local;
        for (std::size_t e = 0; e < counts.per_expert.size(); ++e) counts.per_expert[e] += theirs[e];
      }
    }
    return counts;
  });
}

void HighThroughput::stage_dispatch_chunk(std::int64_t chunk) const {
  const int ranks = world_.ranks();
  std::byte* const base = slot(world_.rank(), staged_);
  auto* masks = reinterpret_cast<std::uint64_t*>(base);
  const std::int64_t first = chunk * geometry_.tokens;
  for (std::int64_t t = first; t < std::min(first + geometry_.tokens, in_.tokens); ++t) {
    std::uint64_t mask = 0;
    for (int r = 0; r < ranks; ++r) mask |= static_cast<std::uint64_t>(in_.in_rank[t * ranks + r]) << r;
    masks[t - first] = mask;
    if ((mask & ~(std::uint64_t{1} << world_.rank())) == 0) continue;
    std::byte* record = base + geometry_.records + static_cast<std::size_t>(t - first) * geometry_.record;
    auto* scales = reinterpret_cast<float*>(record);
    if (in_.scales_per_row > 0) std::copy_n(in_.scales + t * in_.scales_per_row, in_.scales_per_row, scales);
    auto* topk = reinterpret_cast<std::int32_t*>(scales + in_.scales_per_row);
    for (std::int64_t k = 0; k < in_.topk_count; ++k)
      topk[k] = static_cast<std::int32_t>(in_.topk[t * in_.topk_count + k]);
    std::copy_n(in_.weights + t * in_.topk_count, in_.topk_count, reinterpret_cast<float*>(topk + in_.topk_count));
    std::memcpy(record + geometry_.head, in_.x + t * in_.row_bytes, static_cast<std::size_t>(in_.row_bytes));
    world_.for_each_far_node([&](Node node) {
      if ((mask & node_masks_[static_cast<std::size_t>(node)]) != 0) {
        world_.put(node, record, geometry_.head + static_cast<std::size_t>(in_.row_bytes));
      }
    });
  }
  world_.put_to_all(masks, static_cast<std::size_t>(std::min(geometry_.tokens, in_.tokens - first)) * sizeof(*masks));
}

void HighThroughput::take_dispatch_chunk(int source, std::int64_t chunk, bool stream, const HtDispatchOutput& out) {
  const int ranks = world_.ranks();
  const int self = world_.rank();
  const std::int64_t first = chunk * geometry_.tokens;
  const std::int64_t end = std::min<std::int64_t>(first + geometry_.tokens, post(source).tokens);
  const std::byte* base = slot(source, taken_[static_cast<std::size_t>(source)]);
  const auto* masks = reinterpret_cast<const std::uint64_t*>(base);
  const std::int64_t local = in_.experts / ranks;
  std::int32_t own_topk[kMaxTopk];
  for (std::int64_t t = first; t < end; ++t) {
    const std::byte* row;
    const float* scales;
    const std::int32_t* topk;
    const float* weights;
    if (source == self) {
      if (!in_.in_rank[t * ranks + self]) continue;
      row = in_.x + t * in_.row_bytes;
      scales = in_.scales + t * in_.scales_per_row;
      for (std::int64_t k = 0; k < in_.topk_count; ++k) {
        own_topk[k] = static_cast<std::int32_t>(in_.topk[t * in_.topk_count + k]);
      }
      topk = own_topk;
      weights = in_.weights + t * in_.topk_count;
    } else {
      if ((masks[t - first] >> self & 1) == 0) continue;
      const std::byte* record = base + geometry_.records + static_cast<std::size_t>(t - first) * geometry_.record;
      row = record + geometry_.head;
      scales = reinterpret_cast<const float*>(record);
      topk = reinterpret_cast<const std::int32_t*>(scales + in_.scales_per_row);
      weights = reinterpret_cast<const float*>(topk + in_.topk_count);
    }
    const std::int64_t to = position_[static_cast<std::size_t>(source)]++;
    if (stream) {
      kernels().stream_copy(out.x + to * in_.row_bytes, row, static_cast<std::size_t>(in_.row_bytes));
    } else {
      std::memcpy(out.x + to * in_.row_bytes, row, static_cast<std::size_t>(in_.row_bytes));
    }
    if (in_.scales_per_row > 0) std::copy_n(scales, in_.scales_per_row, out.scales + to * in_.scales_per_row);
    for (std::int64_t k = 0; k < in_.topk_count; ++k) {
      const std::int64_t expert = topk[k] - self * local;
      const bool here = expert >= 0 && expert < local;
      out.topk[to * in_.topk_count + k] = here ? expert : -1;
      out.weights[to * in_.topk_count + k] = here ? weights[k] : 0.0f;
    }
    out.src_idx[to] = static_cast<std::int32_t>(t);
  }
}

void HighThroughput::dispatch_finish(const HtDispatchOutput& out) {
  guarded(world_, [&] {
    if (!open_) throw Misuse("dispatch: none was begun");
    const int ranks = world_.ranks();
    const int self = world_.rank();
    const std::int64_t to_stage = ranks == 1 ? 0 : chunks_of(in_.tokens, geometry_.tokens);
    std::int64_t staged = 0;
    std::vector<std::int64_t> taken(static_cast<std::size_t>(ranks), 0);
    std::vector<std::int64_t> to_take(static_cast<std::size_t>(ranks), 0);
    std::int64_t received = 0;
    for (int source = 0; source < ranks; ++source) {
      to_take[static_cast<std::size_t>(source)] = chunks_of(post(source).tokens, geometry_.tokens);
      received += post(source).to_rank[self];
    }
    const bool stream = received * in_.row_bytes >= kStreamFromBytes;
    const auto takeable = [&](int source) {
      const auto s = static_cast<std::size_t>(source);
      return taken[s] < to_take[s] && (source == self || has_staged(source, taken_[s] + 1));
    };
    for (;;) {
      bool moved = false;
      if (staged < to_stage && slot_free()) {
        stage_dispatch_chunk(staged++);
        publish_staged();
        moved = true;
      }
      bool finished = staged == to_stage;
      for (int source = 0; source < ranks; ++source) {
        const auto s = static_cast<std::size_t>(source);
        if (takeable(source)) {
          take_dispatch_chunk(source, taken[s]++, stream, out);
          if (source != self) publish_taken(source);
          moved = true;
        }
        finished = finished && taken[s] == to_take[s];
      }
      if (finished) break;
      if (moved) continue;
      world_.waiter().any(
          "dispatch",
          [&] {
            if (staged < to_stage && slot_free()) return true;
            for (int source = 0; source < ranks; ++source) {
              if (takeable(source)) return true;
            }
            return false;
          },
          [&](int peer) {
            const auto p = static_cast<std::size_t>(peer);
            return (taken[p] == to_take[p] || takeable(peer)) && (staged == to_stage || slot_free_of(peer));
          });
    }
    if (stream) store_fence();
    open_ = false;
    finish();
  });
}

}  // namespace ep_core
