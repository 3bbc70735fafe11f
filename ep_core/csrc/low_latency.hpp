// Low latency: per-expert packed receive buffers of fixed size; rows in order of source rank, token, top-k position.
//
// Pull. A source stages each token once in its own segment (as it is, or quantised) with its top-k; every receiver
// reads all sources' top-k, so it knows where each row goes, and gathers rows straight into the caller's tensors.
// Combine goes the same way: an expert's rank stages rows at [local expert, slot] in its segment, and the source rank
// reads them and reduces in top-k order. Or, when the weights came with the tokens, the expert's rank reduces the rows
// of a token first (low_latency_reduce.cpp), and the source adds ranks in rank order.
//
// Epochs and halves. Operation e (1, 2, ...) uses half e % 2 of the region. A rank stages epoch e once every peer has
// published ll_done[e % 2] >= e - 2, so two operations may be in flight: that is what receive hooks need.
// Progress within an epoch is in the low 16 bits of ll_posted: 1 = post, top-k or layout are there; 1 + n = n chunks of
// rows are there as well; 0xffff = all are. A chunk is a range of source tokens, the same on every rank.
//
// Combine's rows lie at [local expert, slot] when they must outlive the call (a hook, zero copy) or are few. Else they
// go through a ring in the same place, small enough to stay in the last-level cache, and ll_reduced says which chunks
// the destinations have read; every rank then stages and reduces in turn.
//
// Memory traffic per rank, rows of `row` bytes: dispatch reads and writes T rows to stage, then reads and writes one
// row for each selection received. Combine reads and writes one row for each selection received from another rank (none
// with zero copy), then reads K rows and writes one for each token.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "low_latency_layout.hpp"
#include "world.hpp"

namespace ep_core {

struct DispatchInput {
  LowLatencySizes sizes;
  const std::uint16_t* x;    // bf16 [tokens, hidden]
  const std::int64_t* topk;  // [tokens, topk_count], -1 masked
  const float* weights;      // [tokens, topk_count], read if weighted
  std::int64_t tokens;
  std::int64_t topk_count;
  bool weighted;
  bool fp8;
  bool round_scale;
  bool ue8m0;
};

struct DispatchOutput {
  std::byte* x;            // [local experts, ranks * max_tokens, hidden], bf16 or e4m3
  std::byte* scales;       // float32, storage [local experts, hidden / 128, ranks * max_tokens]; or with ue8m0 int32
                           // [local experts, hidden / 512, ranks * max_tokens]; or null
  std::int32_t* src_info;  // [local experts, ranks * max_tokens]
  std::int64_t* layout_range;  // [local experts, ranks], begin << 32 | count
  std::int32_t* count;         // [local experts]
  std::int32_t* stats;         // [local experts], counts are added; or null
  // If weighted: [ranks, max_tokens, topk_count], the row of each selection that came here, else -1; and its weight.
  std::int32_t* map_rows;
  float* map_weights;
};

struct CombineInput {
  LowLatencySizes sizes;
  const std::uint16_t* x;    // bf16 [local experts, ranks * max_tokens, hidden]
  const std::int64_t* topk;  // [tokens, topk_count]
  const float* weights;      // [tokens, topk_count]
  const std::int32_t* src_info;
  const std::int64_t* layout_range;
  std::int64_t tokens;
  std::int64_t topk_count;
  bool zero_copy;
  const std::int32_t* map_rows;  // as dispatch wrote it: rows are reduced here; or null
  const float* map_weights;
};

class LowLatency {
 public:
  explicit LowLatency(World& world) : world_(world) {}

  // Bytes of region that sizes need on `ranks` ranks: what num_rdma_bytes must be at least.
  static std::int64_t size_hint(const LowLatencySizes& sizes, int ranks);

  // The whole operation.
  void dispatch(const DispatchInput& in, const DispatchOutput& out);
  void combine(const CombineInput& in, std::uint16_t* out);

  // In two halves: send publishes and returns an epoch; receive(epoch) ends it. Inputs may change in between.
  std::uint64_t dispatch_send(const DispatchInput& in);
  void dispatch_receive(std::uint64_t epoch, const DispatchOutput& out);
  std::uint64_t combine_send(const CombineInput& in);
  void combine_receive(std::uint64_t epoch, std::uint16_t* out);

  // Where the next operation, if it is a combine with zero copy, expects its rows: [local experts, slots, hidden] bf16.
  std::uint16_t* next_combine_buffer(const LowLatencySizes& sizes);

  // Throws WrongArgument when sizes do not fit the region.
  void check_fits(const LowLatencySizes& sizes) const;

 private:
  struct Pending {
    Phase phase{};
    std::uint64_t epoch = 0;  // 0: none
    LowLatencySizes sizes{};
    const std::uint16_t* own_rows = nullptr;  // where this rank's own rows are: the caller's memory, or null: staged
    bool fp8 = false;
    bool ue8m0 = false;
    bool weighted = false;
    std::int64_t tokens = 0;
    std::int64_t topk_count = 0;
    std::vector<std::int64_t> topk;
    std::vector<float> weights;
  };

  LowLatencyLayout layout(const LowLatencySizes& sizes) const;
  std::byte* half(int rank, std::uint64_t epoch) const;
  std::uint64_t begin(Phase phase);
  void publish(std::uint64_t epoch, std::uint64_t progress) const;
  bool peer_at(int peer, std::uint64_t epoch, std::uint64_t progress) const;
  void check_peers(const Pending& op);
  void finish(Pending& op);
  void check_topk(const LowLatencySizes& sizes, const std::int64_t* topk, std::int64_t tokens, std::int64_t topk_count,
                  bool dispatching);
  void check_handle(const CombineInput& in, bool& sorted) const;
  void check_map(const CombineInput& in) const;
  void check_offered(const CombineInput& in) const;
  Pending& pending(std::uint64_t epoch, Phase phase);

  template <class F>
  bool all_peers(const F& holds) const {
    for (int peer = 0; peer < world_.ranks(); ++peer) {
      if (peer != world_.rank() && !holds(peer)) return false;
    }
    return true;
  }

  Pending& stage_dispatch(const DispatchInput& in, bool hooked);
  void receive_dispatch(Pending& op, const DispatchOutput& out);
  void write_scales(const Pending& op, const DispatchOutput& out) const;

  // Stages; unless hooked, reduces tokens into `out` as soon as their rows are there.
  Pending& stage_combine(const CombineInput& in, bool hooked, std::uint16_t* out);
  Pending& post_combine(std::uint64_t epoch, const CombineInput& in, bool hooked, std::int64_t ring_rows);
  std::int64_t plan_ring(const CombineInput& in);
  bool ring_has_room(const Pending& op, std::int64_t chunk, int to) const;
  std::int64_t ring_rows_of(const Pending& op, int owner) const;
  void stage_chunk(const Pending& op, const CombineInput& in, std::int64_t chunk, bool sorted);
  void put_rows_in_place(const Pending& op, const CombineInput& in) const;
  bool chunk_arrived(const Pending& op, std::int64_t chunk) const;
  bool try_index(Pending& op);
  void build_index(Pending& op);
  void index_owner(const Pending& op, int owner);
  void reduce_chunk(const Pending& op, std::uint16_t* out);
  void receive_combine(Pending& op, std::uint16_t* out);

  Pending& stage_reduced(const CombineInput& in, bool hooked);
  void receive_reduced(Pending& op, std::uint16_t* out);

  World& world_;
  std::uint64_t epoch_ = 0;
  std::uint64_t offered_ = 0;  // epoch for which next_combine_buffer was given out
  Pending pending_[2];

  // Scratch, kept between operations.
  std::vector<std::int32_t> selections_;    // [experts]
  std::vector<std::int32_t> counts_;        // [local experts, ranks]
  std::vector<std::int32_t> cursor_;        // [local experts, ranks]
  std::vector<const float*> scale_rows_;    // one per received row, by expert
  std::vector<const std::uint16_t*> rows_;  // [tokens, topk]: the row that answers each selection
  std::vector<std::int64_t> next_;          // [chunks + 1]: number of the next row of each chunk in a peer's ring

  // The combine that is being received.
  bool indexed_ = false;      // rows_ is filled in
  bool ring_in_use_ = false;  // by any rank: it must be told what has been reduced
  std::int64_t reduced_ = 0;  // chunks that are in the output

  // The combine that is being staged.
  std::int64_t ring_rows_ = 0;     // places per destination; 0: rows stay in place
  std::vector<std::int64_t> due_;  // [ranks, chunks + 1]: rows for a destination before each chunk
  struct Copy {
    std::uint16_t* to;
    const std::uint16_t* from;
    int rank;  // for which the row is
  };
  std::vector<Copy> copies_;             // of the current chunk
  std::vector<std::int64_t> staged_to_;  // [ranks]: rows put into the ring so far
};

}  // namespace ep_core
