// What kernels of all operations share: the world they are given, the memory model's verbs, bulk copies, waiting with a
// deadline, and how an operation begins.
//
// Order of memory. Payload goes into a peer's segment by bulk copies (async proxy) or ordinary stores; the thread that
// completed the former, or that met the storing threads at a barrier, then stores the flag with st.release.sys: release
// is cumulative, so whoever reads the flag with ld.acquire.sys sees the payload. A completed bulk copy is visible to
// the generic proxy without a fence; a bulk copy that is to read what a peer's flag announced is issued after
// fence.proxy.async. The system scope is wanted since the other thread is on another GPU; nothing here is gpu scope but
// what only this GPU's blocks share (the ticket).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "layout.hpp"
#include "world.hpp"

namespace ep_core::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

__device__ inline std::uint64_t load_acquire(const std::uint64_t* from) {
  std::uint64_t value;
  asm volatile("ld.acquire.sys.global.b64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline std::uint64_t load_relaxed(const std::uint64_t* from) {
  std::uint64_t value;
  asm volatile("ld.relaxed.sys.global.b64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline void store_release(std::uint64_t* to, std::uint64_t value) {
  asm volatile("st.release.sys.global.b64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

__device__ inline void store_relaxed(std::uint64_t* to, std::uint64_t value) {
  asm volatile("st.relaxed.sys.global.b64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

__device__ inline std::uint64_t now_ns() {
  std::uint64_t value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}

// A value in 32 bits beside the epoch that makes it valid.
__device__ inline std::uint64_t tagged(std::uint32_t value, std::uint64_t epoch) {
  return static_cast<std::uint64_t>(value) << 32 | static_cast<std::uint32_t>(epoch);
}
__device__ inline bool is_of(std::uint64_t word, std::uint64_t epoch) {
  return static_cast<std::uint32_t>(word) == static_cast<std::uint32_t>(epoch);
}
__device__ inline std::uint32_t value_of(std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); }

// --- bulk copies ---------------------------------------------------------------------------------------------------
// Sizes are multiples of 16 bytes, addresses are aligned to 16. A barrier serves one warp and one load at a time.

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void barrier_init(std::uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

// Makes initialised barriers known to the copy engine; before the block's first __syncthreads.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// One thread: what it wrote before is visible to whoever waits.
__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// One thread: `bytes` are going to be loaded under this barrier.
__device__ inline void barrier_expect(std::uint64_t* barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ inline void bulk_load(void* to, const void* from, std::uint32_t bytes, std::uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// Waits for the load of this parity; the loaded bytes are then visible to the thread.
__device__ inline void barrier_wait(std::uint64_t* barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

__device__ inline void bulk_store(void* to, const void* from, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
               "r"(bytes)
               : "memory");
}
__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// All but the thread's last `kLeft` groups of bulk stores have read their shared memory.
template <int kLeft>
__device__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}
// All but the thread's last `kLeft` groups of bulk stores are complete, their writes visible to the thread.
template <int kLeft>
__device__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kLeft) : "memory");
}
// Between ordinary accesses and bulk copies of the same memory.
__device__ inline void proxy_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }

// Two float32 rounded to bf16, to nearest even, the first in the low half; every NaN becomes the host engine's, 0x7fc0,
// where the hardware gives 0x7fff.
__device__ inline std::uint32_t to_bf16_pair(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  const std::uint32_t nan = __vcmpeq2(pair & 0x7fff7fffu, 0x7fff7fffu);
  return (pair & ~nan) | (0x7fc07fc0u & nan);
}

// --- failing and waiting -------------------------------------------------------------------------------------------

// Marks the buffer as broken and tells the host why, unless that was done already.
__device__ inline bool first_to_fail(const World& world) { return atomicExch(&world.control().broken, 1u) == 0; }
__device__ inline bool is_broken(const World& world) {
  return *reinterpret_cast<volatile std::uint32_t*>(&world.control().broken) != 0;
}
__device__ inline void tell(const World& world, std::uint32_t code) {
  asm volatile("st.release.sys.global.b32 [%0], %1;" ::"l"(&world.failure->code), "r"(code) : "memory");
}

__device__ inline void fail_wrong_value(const World& world, Phase phase, std::int64_t what, std::int64_t where) {
  if (!first_to_fail(world)) return;
  world.failure->phase = phase;
  world.failure->what = what;
  world.failure->where = where;
  tell(world, 3);
}

// Which operation a wait belongs to: names the peers that have not even begun it when a deadline passes.
struct Operation {
  Phase phase;
  Lane lane;
  std::uint64_t epoch;
  std::uint32_t signature;

  __device__ int half() const { return lane == kLowLatency ? static_cast<int>(epoch & 1) : 0; }
  __device__ int parity() const { return static_cast<int>(epoch & 1); }
};

__device__ inline void fail_deadline(const World& world, const Operation& op, int peer, std::uint64_t waited_ns) {
  if (!first_to_fail(world)) return;
  bool named = false;
  for (int other = 0; other < world.ranks; ++other) {
    const bool began = is_of(load_relaxed(&world.control().call[op.lane][op.parity()][other]), op.epoch);
    const bool missing = other != world.rank && !began;
    world.failure->missing[other] = missing;
    named |= missing;
  }
  if (!named) world.failure->missing[peer] = 1;
  world.failure->phase = op.phase;
  world.failure->waited_ns = waited_ns;
  tell(world, 1);
}

constexpr unsigned kPauseNs = 20;

// Asks arrived() until it is true of something that `peer` writes; false when the deadline passed or the buffer is
// broken.
template <class Arrived>
__device__ bool poll(const World& world, const Operation& op, int peer, const Arrived& arrived) {
  std::uint64_t start = 0;
  for (std::uint32_t spins = 1;; ++spins) {
    if (arrived()) return true;
    // Many threads may poll: not so often as to keep from its way what they wait for.
    __nanosleep(kPauseNs);
    if ((spins & 63u) != 0) continue;
    if (is_broken(world)) return false;
    const std::uint64_t now = now_ns();
    if (start == 0) start = now;
    if (now - start > world.deadline_ns) {
      fail_deadline(world, op, peer, now - start);
      return false;
    }
  }
}

// Loads `word`, which `peer` writes, with acquire, until good(value).
template <class Good>
__device__ bool wait_until(const World& world, const Operation& op, int peer, const std::uint64_t* word,
                           const Good& good) {
  return poll(world, op, peer, [&] { return good(load_acquire(word)); });
}

__device__ inline bool wait_for_epoch(const World& world, const Operation& op, int peer, const std::uint64_t* word) {
  return wait_until(world, op, peer, word, [&](std::uint64_t value) { return is_of(value, op.epoch); });
}

// --- beginning -----------------------------------------------------------------------------------------------------
// The epoch comes from the lane's ticket: each launch adds exactly 65536 to it, 1 for each block and the rest for block
// 0, so every block reads the same ticket >> 16 whatever the order in which blocks start. It is the only place where an
// epoch is made, and it is on the device: a captured graph goes on counting.

constexpr unsigned kTicketBits = 16;

__device__ inline std::uint64_t take_epoch(unsigned long long* ticket) {
  const unsigned long long rest = (1ull << kTicketBits) - (gridDim.x - 1);
  return (atomicAdd(ticket, blockIdx.x == 0 ? rest : 1ull) >> kTicketBits) + 1;
}

// By one whole warp: the operation that this launch is.
__device__ inline Operation take_turn(const World& world, Phase phase, Lane lane, std::uint32_t signature) {
  std::uint64_t epoch = 0;
  if (threadIdx.x % kWarp == 0) epoch = take_epoch(&world.control().tickets[lane]);
  return {phase, lane, __shfl_sync(kAll, epoch, 0), signature};
}

// Which ranks are reached through mapped memory: all of them, unless some are on other nodes (ports.cuh).
struct Everyone {
  static constexpr bool kPorts = false;
  __device__ constexpr bool near(int) const { return true; }
};

// By one whole warp: returns when every peer that is near has done with what the half held before, so it may be
// written. False when the buffer is broken: then it may not.
template <class Reach = Everyone>
__device__ bool wait_for_turn(const World& world, const Operation& op, const Reach& reach = {}) {
  const std::uint64_t distance = op.lane == kLowLatency ? 2 : 1;
  const std::uint64_t before = op.epoch > distance ? op.epoch - distance : 0;
  bool good = !is_broken(world);
  for (int peer = static_cast<int>(threadIdx.x) % kWarp; peer < world.ranks; peer += kWarp) {
    if (peer == world.rank || !reach.near(peer)) continue;
    const auto done = [&](std::uint64_t value) { return value >= before; };
    if (!wait_until(world, op, peer, &world.control().ack[op.lane][op.half()][peer], done)) good = false;
  }
  __syncwarp();
  return __all_sync(kAll, good) != 0;
}

// By one whole warp of one block, before this launch's `tell_call`: acknowledges what earlier operations consumed; they
// ended before this launch began. One fence at system scope, then relaxed stores: a release.
template <class Reach = Everyone>
__device__ void acknowledge(const World& world, Lane lane, const Reach& reach = {}) {
  const int halves = lane == kLowLatency ? 2 : 1;
  asm volatile("fence.acq_rel.sys;" ::: "memory");
  for (int peer = static_cast<int>(threadIdx.x) % kWarp; peer < world.ranks; peer += kWarp) {
    if (!reach.near(peer)) continue;
    for (int half = 0; half < halves; ++half) {
      store_relaxed(&world.control(peer).ack[lane][half][world.rank], world.control().consumed[lane][half]);
    }
  }
  __syncwarp();
}

// By the same warp: tells the peers which operation this is. `consumes`: this launch will read the half to its end, so
// that the next one can acknowledge it.
template <class Reach = Everyone>
__device__ void tell_call(const World& world, const Operation& op, bool consumes, const Reach& reach = {}) {
  const int first = static_cast<int>(threadIdx.x) % kWarp;
  for (int peer = first; peer < world.ranks; peer += kWarp) {
    if (!reach.near(peer)) continue;
    store_relaxed(&world.control(peer).call[op.lane][op.parity()][world.rank], tagged(op.signature, op.epoch));
  }
  if (consumes && first == 0) world.control().consumed[op.lane][op.half()] = op.epoch;
}

// All of it, by one whole warp of every block, where the time of a fence does not matter.
__device__ inline Operation begin(const World& world, Phase phase, Lane lane, std::uint32_t signature, bool consumes) {
  if (blockIdx.x == 0) acknowledge(world, lane);
  const Operation op = take_turn(world, phase, lane, signature);
  if (blockIdx.x == 0) tell_call(world, op, consumes);
  wait_for_turn(world, op);
  return op;
}

__device__ inline void fail_unlike(const World& world, const Operation& op, int peer, std::uint32_t theirs) {
  if (!first_to_fail(world)) return;
  world.failure->what = theirs;
  world.failure->where = op.signature;
  world.failure->phase = op.phase;
  world.failure->missing[peer] = 1;
  tell(world, 2);
}

// By one whole warp of block 0: waits for every peer that is near to have begun this operation, and alike.
template <class Reach = Everyone>
__device__ void check_alike(const World& world, const Operation& op, const Reach& reach = {}) {
  for (int peer = threadIdx.x % kWarp; peer < world.ranks; peer += kWarp) {
    if (!reach.near(peer)) continue;
    const std::uint64_t* word = &world.control().call[op.lane][op.parity()][peer];
    if (!wait_for_epoch(world, op, peer, word)) continue;
    const std::uint32_t theirs = value_of(load_relaxed(word));
    if (theirs != op.signature) fail_unlike(world, op, peer, theirs);
  }
}

}  // namespace ep_core::cuda
