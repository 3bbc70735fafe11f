// The ranks of one buffer and their segments: what every operation stands on.
//
// A segment is [Control | low-latency region, rdma_bytes | high-throughput ring, nvl_bytes]; every rank maps all of
// them. Next to read: low_latency.hpp, high_throughput.hpp.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "control.hpp"
#include "segment.hpp"
#include "wait.hpp"

namespace ep_core {

using Token = std::array<std::uint8_t, 16>;

// A wrong argument. Becomes ValueError; nothing was published, or every rank has been released again.
class WrongArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Where a peer's segment is found.
struct PeerAddress {
  int pid;
  int fd;
  Token token;
};

class World {
 public:
  World(int rank, int ranks, std::int64_t nvl_bytes, std::int64_t rdma_bytes, double timeout_s, const Token& token,
        std::function<void()> check_signals);

  // This rank's memfd, to be announced to peers until connect() has returned.
  int fd() const { return fd_.get(); }
  // Maps every peer, in rank order, and waits until every peer has mapped every other. Throws PeersMissing.
  void connect(const std::vector<PeerAddress>& peers);
  // Gives up the mappings; tensors that look into them keep them alive.
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

  // Wakes every peer that awaits this rank.
  void ring_all() const;
  void ring_one(int peer) const;

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
};

}  // namespace ep_core
