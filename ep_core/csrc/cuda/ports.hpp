// Ranks of other nodes: what a message between two of them holds and where it lies, and what kernels are given to send
// it. Plain C++, for host and device.
//
// A rank of this node is reached by stores through mapped memory, one of another node by a port channel: each send of a
// low-latency operation puts together one message for each such rank, in this rank's own segment, and a proxy puts it
// into the receiver's and then adds one to its semaphore. So the semaphore counts the sends of the peer: it is the
// epoch whose message has arrived, it has one writer, and a replayed graph goes on counting.
//
//     message = [ header | table: [token][chunk] | dispatch: selections [token][k] | pieces ]
//
// Pieces lie in the order in which they became ready; the table says where each is. What the receiver makes of them has
// the same order as for direct peers.
//
// Next to read: ports.cuh.
#pragma once

#include "layout.hpp"

namespace ep_core::cuda {

// How a message begins. A message of another epoch or signature than the receiver's is not looked at any further.
struct MessageHeader {
  std::uint64_t epoch;
  std::uint64_t ack;        // the last epoch of the other half that the sender has done with
  std::uint64_t signature;  // of what all ranks must have alike
  std::uint64_t pieces;
};
constexpr std::int64_t kHeaderBytes = 128;
static_assert(sizeof(MessageHeader) <= kHeaderBytes);

// The most local selections that a token can have on one rank.
EP_HOST_DEVICE constexpr std::int64_t most_rows_of_token(const LowLatencySizes& sizes, int ranks) {
  const std::int64_t local = sizes.experts / ranks;
  return local < kMaxTopk ? local : kMaxTopk;
}

// Bytes for one message of any low-latency operation of these sizes.
EP_HOST_DEVICE constexpr std::int64_t message_slot_bytes(const LowLatencySizes& sizes, int ranks) {
  const std::int64_t tokens = sizes.max_tokens;
  const std::int64_t before = kHeaderBytes + tokens * 8 * (kMostChunks + kMaxTopk);
  // Every piece takes as much room as the widest.
  const std::int64_t row = 2ll * sizes.hidden + 2ll * kScaleBlock * kMostChunks;
  return align_up(before, 128) + align_up(tokens * most_rows_of_token(sizes, ranks) * row, 128);
}

// What messages take of one half, with `slots` ranks of other nodes at the most: received and sent ones.
EP_HOST_DEVICE constexpr std::int64_t messages_bytes(const LowLatencySizes& sizes, int ranks, int slots) {
  return align_up(2ll * slots * message_slot_bytes(sizes, ranks), kPage);
}

// Where an operation's messages lie: slots from where the half's payload begins, the rest from where a message does.
struct MessageLayout {
  std::int64_t received;
  std::int64_t sent;
  std::int64_t slot_bytes;
  std::int64_t selections;
  std::int64_t pieces;
  std::int64_t piece_bytes;
  std::int64_t capacity;  // pieces

  // topk: selections that travel with the message of a dispatch, 0 for a combine.
  MessageLayout(const LowLatencySizes& sizes, int ranks, int slots, const LowLatencyLayout& half, int topk,
                const Chunks& chunks, std::int64_t piece_bytes_)
      : received(half.half_bytes - messages_bytes(sizes, ranks, slots)),
        sent(received + slots * message_slot_bytes(sizes, ranks)),
        slot_bytes(message_slot_bytes(sizes, ranks)),
        selections(kHeaderBytes + 8ll * sizes.max_tokens * chunks.count),
        pieces(align_up(selections + 8ll * sizes.max_tokens * topk, 128)),
        piece_bytes(piece_bytes_),
        capacity((slot_bytes - pieces) / piece_bytes_) {}
};

// A channel to one rank of another node, and which of the slots are this pair's. In device memory, one for each rank;
// `Channel` is mscclpp::PortChannelDeviceHandle, which only files that have MSCCL++ know.
template <class Channel>
struct PortOf {
  Channel channel;
  std::int64_t slot_here;   // of what comes from there
  std::int64_t slot_there;  // of what goes there
};

// What a kernel is given of all this.
struct PortsGiven {
  void* of;              // PortOf[ranks]; those of this node's ranks are zero and never used
  std::uint64_t remote;  // the ranks of other nodes, one bit each
  MessageLayout at;
};

}  // namespace ep_core::cuda
