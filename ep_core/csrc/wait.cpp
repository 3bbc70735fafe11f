#include "wait.hpp"

#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>

namespace ep_core {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr milliseconds kTick{50};
constexpr nanoseconds kSpinOwnCore{150'000};
constexpr nanoseconds kSpinSharedCore{1'500};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen, nanoseconds limit) {
  const timespec wait{static_cast<time_t>(limit.count() / 1'000'000'000),
                      static_cast<long>(limit.count() % 1'000'000'000)};
  ::syscall(SYS_futex, &word, FUTEX_WAIT, seen, &wait, nullptr, 0);
}

}  // namespace

void ring(Bell& bell, int self) {
  std::uint32_t awaited = bell.awaited.load(std::memory_order_relaxed);
  if (awaited != kAnyRank && awaited != static_cast<std::uint32_t>(self) + 1) return;
  if (!bell.awaited.compare_exchange_strong(awaited, 0, std::memory_order_relaxed)) return;
  bell.rings.fetch_add(1, std::memory_order_release);
  ::syscall(SYS_futex, &bell.rings, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

Waiter::Waiter(int rank, int ranks, double timeout_s, std::function<void()> check_signals)
    : rank_(rank),
      ranks_(ranks),
      timeout_s_(timeout_s),
      spin_(kSpinSharedCore),
      check_signals_(std::move(check_signals)) {}

void Waiter::attach(Bell* own, std::vector<Descriptor> processes, std::vector<const Counter*> left, bool own_cores) {
  bell_ = own;
  processes_ = std::move(processes);
  left_ = std::move(left);
  spin_ = own_cores ? kSpinOwnCore : kSpinSharedCore;
}

bool Waiter::exited(int peer) const {
  const auto at = static_cast<std::size_t>(peer);
  if (left_[at] != nullptr) return left_[at]->value.load(std::memory_order_acquire) != 0;
  const Descriptor& process = processes_[at];
  if (!process.valid()) return false;
  pollfd poll{process.get(), POLLIN, 0};
  return ::poll(&poll, 1, 0) > 0;
}

void Waiter::tick(const char* phase, Clock::time_point start, ArrivedRef arrived, bool look_at_processes) const {
  check_signals_();
  const double waited_s = duration<double>(Clock::now() - start).count();
  const bool late = waited_s >= timeout_s_;
  if (!late && !look_at_processes) return;
  std::vector<int> gone;
  for (int peer = 0; peer < ranks_; ++peer) {
    // The process is looked at first: what it published before it ended is then visible.
    if (peer != rank_ && exited(peer) && !arrived(peer)) gone.push_back(peer);
  }
  if (!late && gone.empty()) return;
  std::vector<int> missing;
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer != rank_ && !arrived(peer)) missing.push_back(peer);
  }
  if (!missing.empty()) throw PeersMissing(phase, rank_, late ? missing : gone, gone, waited_s);
}

template <class Ready>
void Waiter::until(const char* phase, std::uint32_t awaited, Clock::time_point start, ArrivedRef arrived,
                   const Ready& ready) const {
  const auto spin_end = Clock::now() + spin_;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return;
      relax();
    }
  } while (Clock::now() < spin_end);
  auto next_tick = start + kTick;
  auto next_look = start + 2 * kTick;
  const auto deadline = start + std::chrono::duration_cast<Clock::duration>(duration<double>(timeout_s_));
  for (;;) {
    const std::uint32_t seen = bell_->rings.load(std::memory_order_acquire);
    bell_->awaited.store(awaited, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!ready()) {
      const auto now = Clock::now();
      const nanoseconds limit = std::min<nanoseconds>(kTick, std::max<nanoseconds>(deadline - now, milliseconds{1}));
      futex_wait(bell_->rings, seen, limit);
    }
    bell_->awaited.store(0, std::memory_order_relaxed);
    if (ready()) return;
    const auto now = Clock::now();
    if (now >= next_tick || now >= deadline) {
      const bool look = now >= next_look;
      tick(phase, start, arrived, look);
      next_tick = now + kTick;
      if (look) next_look = now + 2 * kTick;
    }
  }
}

void Waiter::sleep_all(const char* phase, ArrivedRef arrived) const {
  const auto start = Clock::now();
  for (int peer = 0; peer < ranks_; ++peer) {
    if (peer == rank_) continue;
    until(phase, static_cast<std::uint32_t>(peer) + 1, start, arrived, [&] { return arrived(peer); });
  }
}

void Waiter::sleep_any(const char* phase, ArrivedRef settled, bool (*ready)(const void*), const void* object) const {
  until(phase, kAnyRank, Clock::now(), settled, [&] { return ready(object); });
}

}  // namespace ep_core
