// The part of a rank's segment that peers synchronise through, and the rules of doing so.
//
// Who writes what. A rank writes only its own segment, and every 64-bit counter in it has that one writer. Peers read.
// The bell is the exception: any peer may ring it.
//
// Ordering. A writer fills plain memory (posts, staged rows), then stores the counter with release; a reader loads the
// counter with acquire, then reads the plain memory. The way back is the same: a reader loads rows, then stores its
// `done` or `taken` counter with release; the writer loads that with acquire before it overwrites. Rows written with
// non-temporal stores are followed by a store fence before the release. Only the bell needs a full fence, because there
// each side stores one word and loads the other (see wait.hpp). Nothing else is sequentially consistent.
//
// A rank of another node is seen through a mirror of its segment, to which all of this applies: see outbox.hpp.
//
// Next to read: wait.hpp, then low_latency.hpp and high_throughput.hpp.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ep_core {

constexpr int kMaxRanks = 64;
constexpr int kMaxTopk = 32;
constexpr int kMaxExperts = 65536;
constexpr int kScaleBlock = 128;  // columns that share one fp8 scale
constexpr std::size_t kPage = 4096;
constexpr std::uint64_t kMagic = 0x3165726f635f7065;  // "ep_core1"
constexpr std::uint64_t kProtocol = 3;                // changes with the layout of anything below

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "counters are shared between processes");

constexpr std::size_t align_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

// Two cache lines, so that the adjacent-line prefetcher does not couple neighbours.
struct alignas(128) Counter {
  std::atomic<std::uint64_t> value;
};

// Wakes a rank that sleeps. `awaited` is 0 (awake), rank + 1 (sleeps until that rank acts), or kAnyRank.
struct alignas(128) Bell {
  std::atomic<std::uint32_t> rings;
  std::atomic<std::uint32_t> awaited;
};
constexpr std::uint32_t kAnyRank = kMaxRanks + 1;

enum class Phase : std::int32_t { dispatch = 1, combine = 2 };

// The word that a timeout uses.
constexpr const char* word(Phase phase) { return phase == Phase::dispatch ? "dispatch" : "combine"; }

// What a rank says about its low-latency operation, one per half.
struct LowLatencyPost {
  Phase phase;
  std::int32_t tokens;
  std::int32_t topk;
  std::int32_t max_tokens;
  std::int32_t hidden;
  std::int32_t experts;
  std::int32_t fp8;
  std::int32_t round_scale;
  std::int32_t ue8m0;
  std::int32_t weighted;  // dispatch: weights travel; combine: rows come reduced
  std::int32_t hooked;    // rows are received later, by a hook
  std::int32_t
      ring_rows;  // combine: rows go through a ring with this many places per destination; 0: they stay in place
};

// What a rank says about its high-throughput operation, one per half.
struct HighThroughputPost {
  Phase phase;
  std::int32_t tokens;  // dispatch: tokens this rank sends; combine: tokens this rank wants back
  std::int32_t row_bytes;
  std::int32_t scales;  // float32 scales per row
  std::int32_t topk;    // 0: neither top-k nor weights travel
  std::int32_t experts;
  std::int32_t cached;  // dispatch: counts come from a handle, none are published
  std::int32_t room;    // dispatch: rows this rank has space for; 0: any number
  std::int32_t to_rank[kMaxRanks];
};

struct Control {
  std::uint64_t magic;
  std::uint64_t protocol;
  std::uint8_t token[16];
  std::int32_t rank;
  std::int32_t ranks;

  Bell bell;
  Counter mapped;  // 1: this rank has mapped every peer
  Counter left;    // 1: no more will come from this rank; written into the mirror of a rank of another node alone

  Counter ll_posted;   // epoch << 16 | progress, see low_latency.hpp
  Counter ll_done[2];  // per half: the last epoch whose peers' data this rank has read
  Counter ll_reduced;  // epoch << 16 | chunks of the combine that this rank has reduced
  LowLatencyPost ll_post[2];

  Counter ht_posted;            // the last operation whose post is published
  Counter ht_done;              // the last operation this rank has finished
  Counter ht_staged;            // chunks this rank has put into its ring, over all operations
  Counter ht_taken[kMaxRanks];  // [source]: chunks of that source's ring this rank has read
  HighThroughputPost ht_post[2];
  std::int32_t ht_experts[2][kMaxExperts];
};

constexpr std::size_t kControlBytes = align_up(sizeof(Control), kPage);

}  // namespace ep_core
