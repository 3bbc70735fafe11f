// Waiting for peers: a bounded spin, then sleep on this rank's bell, never past the deadline.
//
// Sleeping. The sleeper stores whom it awaits, fences, and looks once more before it sleeps; a peer that has published
// something fences, and rings if it is awaited. The two full fences make it impossible that both miss each other.
// A sleeper is woken only by the rank it awaits, so a world of many ranks on few cores does not wake all for each.
// At least every 50 ms it looks for signals (Ctrl-C) and for peers whose process has ended.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "control.hpp"
#include "segment.hpp"

namespace ep_core {

// Peers that did not arrive. Becomes ep_core.EPTimeoutError.
class PeersMissing : public std::exception {
 public:
  PeersMissing(std::string phase, int rank, std::vector<int> missing, std::vector<int> exited, double waited_s,
               std::string why = "")
      : phase(std::move(phase)),
        rank(rank),
        missing(std::move(missing)),
        exited(std::move(exited)),
        waited_s(waited_s),
        why(std::move(why)) {}
  const char* what() const noexcept override { return "peers are missing"; }

  std::string phase;
  int rank;  // who waited
  std::vector<int> missing;
  std::vector<int> exited;  // those of `missing` whose process has ended: waiting longer was useless
  double waited_s;
  std::string why;  // empty: it did not arrive in time, or has exited
};

// Calls `rank -> has it arrived` by reference: no allocation on the hot path.
class ArrivedRef {
 public:
  template <class F>
  explicit ArrivedRef(const F& f)
      : object_(&f), call_([](const void* object, int rank) { return (*static_cast<const F*>(object))(rank); }) {}
  bool operator()(int rank) const { return call_(object_, rank); }

 private:
  const void* object_;
  bool (*call_)(const void*, int);
};

class Waiter {
 public:
  // `check_signals` is called while sleeping and may throw to end the wait.
  Waiter(int rank, int ranks, double timeout_s, std::function<void()> check_signals);

  // Our bell; one handle on each peer's process (invalid where the kernel gives none, or the peer is on another node);
  // for each peer on another node the word that says it has left, else null; and whether every rank of this node can
  // have a core: then waiting spins for longer before it sleeps.
  void attach(Bell* own, std::vector<Descriptor> processes, std::vector<const Counter*> left, bool own_cores);

  // Returns when arrived(r) is true for every peer r.
  template <class F>
  void all(const char* phase, const F& arrived) const {
    for (int peer = 0; peer < ranks_; ++peer) {
      if (peer != rank_ && !arrived(peer)) {
        sleep_all(phase, ArrivedRef(arrived));
        return;
      }
    }
  }

  // Returns when arrived(peer) is true.
  template <class F>
  void one(const char* phase, int peer, const F& arrived) const {
    if (!arrived(peer)) all(phase, [&](int rank) { return rank != peer || arrived(rank); });
  }

  // Returns when ready() is true, whichever peer makes it so; a timeout names every rank for which settled(r) is false.
  template <class Ready, class F>
  void any(const char* phase, const Ready& ready, const F& settled) const {
    sleep_any(
        phase, ArrivedRef(settled), [](const void* object) { return (*static_cast<const Ready*>(object))(); }, &ready);
  }

  double timeout_s() const { return timeout_s_; }

 private:
  using Clock = std::chrono::steady_clock;
  void sleep_all(const char* phase, ArrivedRef arrived) const;
  void sleep_any(const char* phase, ArrivedRef settled, bool (*ready)(const void*), const void* object) const;
  template <class Ready>
  void until(const char* phase, std::uint32_t awaited, Clock::time_point start, ArrivedRef arrived,
             const Ready& ready) const;
  void tick(const char* phase, Clock::time_point start, ArrivedRef arrived, bool look_at_processes) const;
  bool exited(int peer) const;

  int rank_;
  int ranks_;
  double timeout_s_;
  std::chrono::nanoseconds spin_;
  std::function<void()> check_signals_;
  Bell* bell_ = nullptr;
  std::vector<Descriptor> processes_;
  std::vector<const Counter*> left_;
};

// Wakes the owner of `bell` if it sleeps until `self` acts. A sequentially consistent fence must stand between the
// release store that it should see and this call.
void ring(Bell& bell, int self);

}  // namespace ep_core
