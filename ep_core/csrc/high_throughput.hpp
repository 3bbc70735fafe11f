// High throughput: exact-size receive, one copy per destination rank, through a bounded ring of any size.
//
// A rank's ring has kRingSlots slots; chunk n (counted over all operations) lies in slot n % kRingSlots. ht_staged says
// how many chunks are there, each reader's ht_taken how many of them it has read; a slot is written again once every
// peer has taken what it held. Each rank stages and takes in turn and sleeps only when it can do neither.
//
// Dispatch: a chunk is a range of the source's tokens, each staged once whatever the number of destinations, with a
// mask of them; every receiver gathers its rows. Combine: a chunk is a range of source tokens, the same on every rank;
// a rank stages the rows it owes each source, and a source reduces a chunk, in rank order, once all ranks have staged
// it. A rank's own rows never pass through the ring.
//
// Memory traffic per rank, in rows: dispatch reads and writes each token sent elsewhere, then reads and writes each row
// received. Combine reads and writes each row owed to another rank, then reads one row for each (token, destination
// rank) and writes one for each token.
#pragma once

#include <cstdint>
#include <vector>

#include "world.hpp"

namespace ep_core {

struct HtDispatchInput {
  const std::byte* x;  // [tokens, row_bytes]
  std::int64_t row_bytes;
  const float* scales;  // [tokens, scales_per_row], or null
  std::int64_t scales_per_row;
  const std::int64_t* topk;  // [tokens, topk_count], or null
  const float* weights;      // [tokens, topk_count], or null
  std::int64_t topk_count;   // 0 without topk
  std::int64_t tokens;
  std::int64_t experts;               // 0 when cached
  const bool* in_rank;                // [tokens, ranks]
  const std::int32_t* per_rank;       // [ranks], or null: cached
  const std::int32_t* per_expert;     // [experts], or null: cached
  const std::int32_t* cached_prefix;  // [ranks, ranks] of the handle, or null
  std::int64_t room;                  // rows there will be space for; 0: any number
};

// What a dispatch will receive: known after the notify step, before any row has moved.
struct HtCounts {
  std::vector<std::int32_t> rank_prefix;  // [source, destination], inclusive over sources
  std::vector<std::int64_t> per_expert;   // [local experts]; empty when cached
  std::int64_t received = 0;
};

struct HtDispatchOutput {
  std::byte* x;           // [received, row_bytes]
  float* scales;          // [received, scales_per_row], or null
  std::int64_t* topk;     // [received, topk_count], local expert or -1; or null
  float* weights;         // [received, topk_count]; or null
  std::int32_t* src_idx;  // [received]
};

struct HtCombineInput {
  const std::byte* x;  // [received, columns], bf16 or float32
  bool is_f32;
  std::int64_t columns;
  std::int64_t received;
  const float* weights;  // [received, topk_count], or null
  std::int64_t topk_count;
  const std::int32_t* src_idx;      // [received]
  const std::int32_t* rank_prefix;  // [ranks, ranks]
  const bool* in_rank;              // [tokens, ranks]
  std::int64_t tokens;
  const std::byte* bias[2];  // [tokens, columns] each, or null
};

class HighThroughput {
 public:
  static constexpr std::int64_t kRingSlots = 4;

  explicit HighThroughput(World& world);

  // Least num_nvl_bytes for rows of `row_bytes` with `extra_bytes` of scales, top-k and weights each, on `ranks` ranks.
  static std::int64_t least_bytes(std::int64_t row_bytes, std::int64_t extra_bytes, int ranks);

  // Publishes what is to be sent and learns what is to be received. dispatch_finish must follow.
  HtCounts dispatch_begin(const HtDispatchInput& in);
  void dispatch_finish(const HtDispatchOutput& out);

  // out: [tokens, columns]; out_weights: [tokens, topk_count] or null.
  void combine(const HtCombineInput& in, std::byte* out, float* out_weights);

 private:
  struct Geometry {
    std::int64_t tokens;  // per chunk
    std::size_t record;   // bytes per row in a slot
    std::size_t head;     // bytes in front of the row in a record
    std::size_t records;  // offset of the records in a slot
  };

  Geometry geometry(std::int64_t row_bytes, std::int64_t extra_bytes, std::int64_t lanes) const;
  std::byte* slot(int rank, std::uint64_t chunk) const;
  void begin(Phase phase, const HighThroughputPost& post, const std::int32_t* per_expert);
  void check_posts(Phase phase);
  void check_room();
  void finish();
  const HighThroughputPost& post(int rank) const { return world_.control(rank).ht_post[op_ & 1]; }
  bool slot_free_of(int peer) const;
  bool slot_free() const;
  bool has_staged(int peer, std::uint64_t chunks) const;
  void publish_staged();
  void publish_taken(int source);

  void stage_dispatch_chunk(std::int64_t chunk) const;
  void take_dispatch_chunk(int source, std::int64_t chunk, bool stream, const HtDispatchOutput& out);
  void check_combine(const HtCombineInput& in) const;

  World& world_;
  std::uint64_t op_ = 0;
  bool open_ = false;                 // between dispatch_begin and dispatch_finish
  std::uint64_t staged_ = 0;          // own chunks, over all operations
  std::vector<std::uint64_t> taken_;  // [source], over all operations
  HtDispatchInput in_{};
  Geometry geometry_{};
  std::vector<std::int64_t> position_;     // [source]: next row received
  std::vector<std::uint64_t> node_masks_;  // [node]: bit r set for its ranks
};

}  // namespace ep_core
