// The ranks of one buffer and their segments: what every operation stands on.
//
// A segment is [Control | low-latency region, rdma_bytes | high-throughput ring, nvl_bytes]; every rank maps all of
// them, those of other nodes as mirrors that ranks of its own node hold (outbox.hpp). A counter is published to both:
// to the own segment for the ranks of this node, with what was put before to the outboxes of the other nodes.
// Next to read: low_latency.hpp, high_throughput.hpp.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "control.hpp"
#include "outbox.hpp"
#include "segment.hpp"
#include "wait.hpp"

namespace ep_core {

using Token = std::array<std::uint8_t, 16>;

// A wrong argument. Becomes ValueError; nothing was published, or every rank has been released again.
class WrongArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Where a peer's segment is found; for a peer on another node, its mirror in the process that holds it.
struct PeerAddress {
  int pid;
  int fd;
  Token token;
};

// A node by its number, in order of the nodes' first ranks.
using Node = int;

class World {
 public:
  World(int rank, int ranks, std::int64_t nvl_bytes, std::int64_t rdma_bytes, double timeout_s, const Token& token,
        std::function<void()> check_signals);

  // This rank's memfd, to be announced to peers until meet() has returned.
  int fd() const { return fd_.get(); }
  // Makes the mirror of a rank of another node, which this rank is to hold; its memfd, to be announced likewise.
  int hold(int source, const Token& token);
  // Maps every peer, in rank order. Throws PeersMissing. node_of: of every rank.
  void map(const std::vector<PeerAddress>& peers, std::vector<Node> node_of);
  // Waits until every peer has mapped every other; operations may begin. Messages must be on their way by then.
  void meet();
  // Gives up the mappings, but for what couriers and tensors that look into them still hold; closes the outboxes.
  void destroy();

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  std::int64_t nvl_bytes() const { return nvl_bytes_; }
  std::int64_t rdma_bytes() const { return rdma_bytes_; }
  const Waiter& waiter() const { return waiter_; }

  Control& control(int rank) const { return *reinterpret_cast<Control*>(base_[static_cast<std::size_t>(rank)]); }
  Control& control() const { return control(rank_); }
  std::byte* low_latency(int rank) const { return base_[static_cast<std::size_t>(rank)] + kControlBytes; }
  std::byte* high_throughput(int rank) const { return low_latency(rank) + align_up(rdma_bytes_, kPage); }
  std::shared_ptr<Mapping> own_mapping() const { return mappings_[static_cast<std::size_t>(rank_)]; }

  // Wakes every peer of this node that awaits this rank.
  void ring_all() const;
  void ring_one(int peer) const;

  // Calls visit(node) for every other node.
  template <class F>
  void for_each_far_node(const F& visit) const {
    for (Node node = 0; node < static_cast<Node>(outboxes_.size()); ++node) {
      if (outboxes_[static_cast<std::size_t>(node)]) visit(node);
    }
  }
  Node node_of(int rank) const { return node_of_[static_cast<std::size_t>(rank)]; }
  bool is_far(int rank) const { return outboxes_[static_cast<std::size_t>(node_of(rank))] != nullptr; }
  // Bytes of the own segment that `node`, another one, is to have when it sees the next counter.
  void put(Node node, const void* bytes, std::size_t size) const;
  void put_to_all(const void* bytes, std::size_t size) const;
  // Stores a counter of the own segment, here and, after all that was put, on the other nodes (or on one rank's).
  void publish(Counter& counter, std::uint64_t value) const;
  void publish_to(int rank, Counter& counter, std::uint64_t value) const;

  // For couriers, from threads of their own. The outbox for `node`; none for the own one.
  std::shared_ptr<Outbox> outbox(Node node) const { return outboxes_.at(static_cast<std::size_t>(node)); }
  // What came from `source`, of which this rank holds the mirror; nothing once the buffer was destroyed.
  void deliver(int source, const std::byte* message, std::size_t bytes);
  // Nothing more will come from `source`.
  void depart(int source);

  // Remembers why the buffer cannot be used any more: peers and this rank no longer agree on what was done.
  void set_broken(std::string reason) { broken_ = std::move(reason); }

  // Held during an operation: refuses a destroyed, broken, forked or busy buffer with std::runtime_error.
  class Use {
   public:
    explicit Use(World& world);
    ~Use() { world_.busy_.store(false, std::memory_order_release); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    World& world_;
  };

 private:
  Descriptor open_peer(int peer, const PeerAddress& address) const;
  void name(Control& control, int rank, const Token& token) const;
  std::uint64_t offset_of(const void* bytes) const;
  void ring_as(int source) const;

  int rank_;
  int ranks_;
  std::int64_t nvl_bytes_;
  std::int64_t rdma_bytes_;
  Token token_;
  Waiter waiter_;
  Descriptor fd_;
  int owner_pid_;
  bool connected_ = false;
  std::string broken_;
  std::atomic<bool> busy_{false};
  std::vector<std::shared_ptr<Mapping>> mappings_;
  std::vector<std::byte*> base_;
  std::vector<Node> node_of_;
  std::vector<std::shared_ptr<Outbox>> outboxes_;  // [node]: none for the own one
  std::vector<Descriptor> held_;                   // [rank]: memfds of the mirrors that this rank holds
  std::mutex delivering_;                          // held by a courier that uses the mappings
};

}  // namespace ep_core
