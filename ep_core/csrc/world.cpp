#include "world.hpp"

#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

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
      base_(static_cast<std::size_t>(ranks), nullptr) {
  const std::size_t bytes = kControlBytes + align_up(static_cast<std::size_t>(rdma_bytes), kPage) +
                            align_up(static_cast<std::size_t>(nvl_bytes), kPage);
  fd_ = create_memfd(bytes);
  const auto own = static_cast<std::size_t>(rank);
  mappings_[own] = std::make_shared<Mapping>(fd_, bytes);
  base_[own] = mappings_[own]->data();
  Control& mine = control();
  mine.magic = kMagic;
  mine.protocol = kProtocol;
  std::memcpy(mine.token, token.data(), token.size());
  mine.rank = rank;
  mine.ranks = ranks;
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

void World::connect(const std::vector<PeerAddress>& peers) {
  if (peers.size() != static_cast<std::size_t>(ranks_)) throw WrongArgument("peers: wanted one address per rank");
  const std::size_t bytes = own_mapping()->bytes();
  std::vector<Descriptor> processes(peers.size());
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer == rank_) continue;
    const auto index = static_cast<std::size_t>(peer);
    const PeerAddress& address = peers[index];
    processes[index] = open_process(address.pid);
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
  waiter_.attach(&control().bell, std::move(processes), cores_of(peers));
  control().mapped.value.store(1, std::memory_order_release);
  ring_all();
  waiter_.all("construction",
              [&](int peer) { return control(peer).mapped.value.load(std::memory_order_acquire) == 1; });
  fd_.reset();
  connected_ = true;
}

void World::destroy() {
  if (busy_.load(std::memory_order_acquire)) throw std::runtime_error("this Buffer is in use by another thread");
  connected_ = false;
  if (broken_.empty()) broken_ = "it was destroyed";
  fd_.reset();
  for (auto& mapping : mappings_) mapping.reset();
  waiter_.attach(nullptr, {}, 0);
}

void World::ring_all() const {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer != rank_) ring(control(peer).bell, rank_);
  }
}

void World::ring_one(int peer) const {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  ring(control(peer).bell, rank_);
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
