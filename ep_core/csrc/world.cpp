#include "world.hpp"

#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace ep_core {
namespace {

// On how many cores the processes together may run, as their affinities stand now.
int cores_of(const std::vector<PeerAddress>& peers) {
  cpu_set_t all;
  CPU_ZERO(&all);
  for (const PeerAddress& peer : peers) {
    cpu_set_t one;
    if (::sched_getaffinity(peer.pid, sizeof(one), &one) == 0) CPU_OR(&all, &all, &one);
  }
  return CPU_COUNT(&all);
}

// A handle on a peer's process that cannot mistake a later process for it.
Descriptor open_process(int pid) { return Descriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

}  // namespace

World::World(int rank, int ranks, std::int64_t nvl_bytes, std::int64_t rdma_bytes, double timeout_s, const Token& token,
             std::function<void()> check_signals)
    : rank_(rank),
      ranks_(ranks),
      nvl_bytes_(nvl_bytes),
      rdma_bytes_(rdma_bytes),
      token_(token),
      waiter_(rank, ranks, timeout_s, std::move(check_signals)),
      owner_pid_(::getpid()),
      mappings_(static_cast<std::size_t>(ranks)),
      base_(static_cast<std::size_t>(ranks), nullptr),
      held_(static_cast<std::size_t>(ranks)) {
  const std::size_t bytes = kControlBytes + align_up(static_cast<std::size_t>(rdma_bytes), kPage) +
                            align_up(static_cast<std::size_t>(nvl_bytes), kPage);
  fd_ = create_memfd(bytes);
  const auto own = static_cast<std::size_t>(rank);
  mappings_[own] = std::make_shared<Mapping>(fd_, bytes);
  base_[own] = mappings_[own]->data();
  name(control(), rank, token);
}

void World::name(Control& control, int rank, const Token& token) const {
  control.magic = kMagic;
  control.protocol = kProtocol;
  std::memcpy(control.token, token.data(), token.size());
  control.rank = rank;
  control.ranks = ranks_;
}

int World::hold(int source, const Token& token) {
  const std::size_t bytes = own_mapping()->bytes();
  Descriptor fd = create_memfd(bytes);
  const Mapping mapping(fd, bytes);
  name(*reinterpret_cast<Control*>(mapping.data()), source, token);
  held_[static_cast<std::size_t>(source)] = std::move(fd);
  return held_[static_cast<std::size_t>(source)].get();
}

// A segment that is gone means a peer that will never come: it failed to construct, or has ended.
Descriptor World::open_peer(int peer, const PeerAddress& address) const {
  try {
    return open_peer_memfd(address.pid, address.fd);
  } catch (const std::system_error& error) {
    if (error.code().value() != ENOENT && error.code().value() != ESRCH) throw;
    const bool ended = ::kill(address.pid, 0) != 0 && errno == ESRCH;
    throw PeersMissing("construction", rank_, {peer}, ended ? std::vector<int>{peer} : std::vector<int>{}, 0.0,
                       "its process has ended or its own construction failed");
  }
}

void World::map(const std::vector<PeerAddress>& peers, std::vector<Node> node_of) {
  if (peers.size() != static_cast<std::size_t>(ranks_) || node_of.size() != peers.size()) {
    throw WrongArgument("peers: wanted one address and one node per rank");
  }
  node_of_ = std::move(node_of);
  outboxes_.resize(static_cast<std::size_t>(*std::max_element(node_of_.begin(), node_of_.end()) + 1));
  const Node own_node = this->node_of(rank_);
  for (Node node = 0; node < static_cast<Node>(outboxes_.size()); ++node) {
    if (node != own_node) outboxes_[static_cast<std::size_t>(node)] = std::make_shared<Outbox>();
  }
  const std::size_t bytes = own_mapping()->bytes();
  std::vector<Descriptor> processes(peers.size());
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer == rank_) continue;
    const auto index = static_cast<std::size_t>(peer);
    const PeerAddress& address = peers[index];
    if (!is_far(peer)) processes[index] = open_process(address.pid);
    const Descriptor fd = open_peer(peer, address);
    const std::string who = "rank " + std::to_string(peer) + " (pid " + std::to_string(address.pid) + ")";
    if (file_bytes(fd) != bytes) {
      throw WrongArgument(who + " has a segment of " + std::to_string(file_bytes(fd)) + " bytes, this rank one of " +
                          std::to_string(bytes) + ": give num_nvl_bytes and num_rdma_bytes alike on all ranks");
    }
    mappings_[index] = std::make_shared<Mapping>(fd, bytes);
    base_[index] = mappings_[index]->data();
    const Control& theirs = control(peer);
    if (theirs.magic != kMagic || theirs.protocol != kProtocol) {
      throw WrongArgument(who + " runs another build of ep_core: install the same one for all ranks");
    }
    if (std::memcmp(theirs.token, address.token.data(), address.token.size()) != 0 || theirs.rank != peer ||
        theirs.ranks != ranks_) {
      throw WrongArgument(who + " is not who it was: its segment belongs to another buffer");
    }
  }
  std::vector<const Counter*> left(peers.size(), nullptr);
  int near = 0;
  for (int peer = 0; peer < ranks_; ++peer) {
    if (is_far(peer)) {
      left[static_cast<std::size_t>(peer)] = &control(peer).left;
    } else {
      ++near;
    }
  }
  waiter_.attach(&control().bell, std::move(processes), std::move(left), near <= cores_of(peers));
}

void World::meet() {
  publish(control().mapped, 1);
  ring_all();
  waiter_.all("construction",
              [&](int peer) { return control(peer).mapped.value.load(std::memory_order_acquire) == 1; });
  fd_.reset();
  for (Descriptor& held : held_) held.reset();
  connected_ = true;
}

void World::destroy() {
  if (busy_.load(std::memory_order_acquire)) throw std::runtime_error("this Buffer is in use by another thread");
  connected_ = false;
  if (broken_.empty()) broken_ = "it was destroyed";
  fd_.reset();
  for (Descriptor& held : held_) held.reset();
  for (const auto& outbox : outboxes_) {
    if (outbox) outbox->close();
  }
  const std::lock_guard lock(delivering_);
  for (auto& mapping : mappings_) mapping.reset();
  waiter_.attach(nullptr, {}, {}, false);
}

void World::ring_all() const { ring_as(rank_); }

// Wakes the ranks of this node that await `source`.
void World::ring_as(int source) const {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer != source && !is_far(peer)) ring(control(peer).bell, source);
  }
}

void World::ring_one(int peer) const {
  if (is_far(peer)) return;
  std::atomic_thread_fence(std::memory_order_seq_cst);
  ring(control(peer).bell, rank_);
}

std::uint64_t World::offset_of(const void* bytes) const {
  return static_cast<std::uint64_t>(static_cast<const std::byte*>(bytes) - base_[static_cast<std::size_t>(rank_)]);
}

void World::put(Node node, const void* bytes, std::size_t size) const {
  if (size > 0) outboxes_[static_cast<std::size_t>(node)]->put(offset_of(bytes), bytes, size);
}

void World::put_to_all(const void* bytes, std::size_t size) const {
  for_each_far_node([&](Node node) { put(node, bytes, size); });
}

void World::publish(Counter& counter, std::uint64_t value) const {
  counter.value.store(value, std::memory_order_release);
  for (const auto& outbox : outboxes_) {
    if (outbox) outbox->publish(offset_of(&counter), value);
  }
}

void World::publish_to(int rank, Counter& counter, std::uint64_t value) const {
  counter.value.store(value, std::memory_order_release);
  if (is_far(rank)) outboxes_[static_cast<std::size_t>(node_of(rank))]->publish(offset_of(&counter), value);
}

void World::deliver(int source, const std::byte* message, std::size_t bytes) {
  const std::lock_guard lock(delivering_);
  const auto& mirror = mappings_.at(static_cast<std::size_t>(source));
  if (!mirror) return;
  ep_core::deliver(message, bytes, mirror->data(), mirror->bytes());
  ring_as(source);
}

void World::depart(int source) {
  const std::lock_guard lock(delivering_);
  if (!mappings_.at(static_cast<std::size_t>(source))) return;
  control(source).left.value.store(1, std::memory_order_release);
  ring_as(source);
}

World::Use::Use(World& world) : world_(world) {
  if (world.owner_pid_ != ::getpid()) {
    throw std::runtime_error("this Buffer belongs to process " + std::to_string(world.owner_pid_) +
                             ": a forked child cannot use it, make its own");
  }
  if (!world.connected_ || !world.broken_.empty()) {
    throw std::runtime_error(
        "this Buffer cannot be used: " + (world.broken_.empty() ? std::string("it is not connected") : world.broken_) +
        "; make a new one on all ranks");
  }
  if (world.busy_.exchange(true, std::memory_order_acquire)) {
    throw std::runtime_error("this Buffer is in use by another thread: one operation at a time");
  }
}

}  // namespace ep_core
