// Messages to and from ranks of other nodes, as the low-latency kernels make and read them; see ports.hpp.
//
// Order of memory. Warps fill the messages by bulk copies, which they complete, and by ordinary stores; each block then
// counts itself as done (`post`: fence and atomic at gpu scope, as only this GPU's blocks share the count). The last
// one has thus acquired what all have written, writes the headers and hands the messages to the proxies, by a
// store-release at system scope in the channel's queue. A proxy puts the bytes and then adds one to the receiver's
// semaphore, in this order on every transport. Receiver: ld.acquire.sys of the semaphore, a warp or block barrier for
// the other threads, fence.proxy.async before bulk loads.
//
// Acknowledgements. Message e carries what the sender has read of the other half: epoch e - 1, if it has. Where it had
// not, since its hooks came later, the next send that uses that half puts the word ahead of its message
// (`acknowledge_early`), or each side would wait for the other.
//
// Why the queue of a channel never fills: at most two operations are neither acknowledged nor broken, and each puts at
// most a word and a message for a peer; a queue has room for that many for every rank (ports.cpp).
//
// Nothing here waits without a deadline: semaphores are read by `poll`, and MSCCL++'s own waits are not used.
#pragma once

#include <mscclpp/port_channel_device.hpp>

#include "low_latency.cuh"
#include "ports.hpp"
#include "reach.cuh"

namespace ep_core::cuda {

using Port = PortOf<mscclpp::PortChannelDeviceHandle>;

struct Ports {
  static constexpr bool kPorts = true;

  const World& world;
  Port* of;
  std::uint64_t remote;
  const MessageLayout& at;

  __device__ Ports(const World& world_, const PortsGiven& given)
      : world(world_), of(static_cast<Port*>(given.of)), remote(given.remote), at(given.at) {}

  __device__ bool near(int peer) const { return (remote >> peer & 1) == 0; }
  __device__ bool far(int peer) const { return !near(peer); }

  // --- acknowledging and waiting --------------------------------------------------------------------------------

  __device__ bool arrived(int peer, std::uint64_t epoch) const {
    return of[peer].channel.semaphore_.loadInbound() >= epoch;
  }

  // By one whole warp of every block, in a send; block 0 acts.
  __device__ void acknowledge_early(const Operation& op) const {
    if (blockIdx.x != 0 || op.epoch <= 2) return;
    Control& control = world.control();
    const std::uint64_t done = op.epoch - 2;  // or this send would have been refused
    if (control.told[op.half()] >= done || is_broken(world)) return;
    if (lane_id() == 0) control.early[op.half()] = done;
    __syncwarp();
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if (near(peer)) continue;
      const auto offset = [&](const void* word) {
        return static_cast<std::uint64_t>(static_cast<const std::byte*>(word) - world.base[world.rank]);
      };
      of[peer].channel.put(offset(&control.ack[op.lane][op.half()][world.rank]), offset(&control.early[op.half()]), 8);
    }
    __syncwarp();
  }

  // By one whole warp: like `wait_for_turn`, for ranks of other nodes.
  __device__ bool wait_for_turn_of_far(const Operation& op) const {
    const Control& control = world.control();
    const std::uint64_t before = op.epoch > 2 ? op.epoch - 2 : 0;
    bool good = !is_broken(world);
    for (int peer = lane_id(); good && before > 0 && peer < world.ranks; peer += kWarp) {
      if (near(peer)) continue;
      const int other = 1 - op.half();
      const std::byte* last =
          world.base[world.rank] + control.inbox[other] + of[peer].slot_here * control.inbox_stride[other];
      const auto acknowledged = [&] {
        if (load_acquire(&control.ack[op.lane][op.half()][peer]) >= before) return true;
        return arrived(peer, op.epoch - 1) &&
               load_relaxed(&reinterpret_cast<const MessageHeader*>(last)->ack) >= before;
      };
      good = poll(world, op, peer, acknowledged);
    }
    __syncwarp();
    return __all_sync(kAll, good) != 0;
  }

  // --- messages ---------------------------------------------------------------------------------------------------

  __device__ std::byte* outgoing(const Half& half, int peer) const {
    return half.at(world.rank, at.sent + of[peer].slot_here * at.slot_bytes);
  }
  __device__ std::byte* incoming(const Half& half, int peer) const {
    return half.at(world.rank, at.received + of[peer].slot_here * at.slot_bytes);
  }
  __device__ static std::uint64_t* table(std::byte* message, std::int64_t index) {
    return reinterpret_cast<std::uint64_t*>(message + kHeaderBytes) + index;
  }
  __device__ std::uint64_t* selection(std::byte* message, std::int64_t index) const {
    return reinterpret_cast<std::uint64_t*>(message + at.selections) + index;
  }
  __device__ std::byte* piece(std::byte* message, std::int64_t slot) const {
    return message + at.pieces + slot * at.piece_bytes;
  }

  // By one thread: room for `count` pieces in the message for `peer`, and the table's entry that says where they are:
  // the first of them, and a mask of the selections they are for. -1 where there are none, or no room, which only wrong
  // tensors could bring about.
  __device__ std::int64_t enter(const Half& half, int peer, std::int64_t index, unsigned mask) const {
    std::int64_t first = -1;
    const int count = __popc(mask);
    if (count > 0) {
      first = atomicAdd(&world.control().pieces[peer], static_cast<std::uint32_t>(count));
      if (first + count > at.capacity) first = -1;
    }
    *table(outgoing(half, peer), index) = first < 0 ? 0 : static_cast<std::uint64_t>(first) << 32 | mask;
    return first;
  }

  // By one thread: where the piece for selection `bit` is that `peer` entered at `index`; null where there is none.
  __device__ std::byte* entered(const Half& half, int peer, std::int64_t index, int bit) const {
    std::byte* const message = incoming(half, peer);
    const std::uint64_t entry = load_relaxed(table(message, index));
    const auto mask = static_cast<unsigned>(entry);
    if ((mask >> bit & 1) == 0) return nullptr;
    const std::int64_t slot = static_cast<std::int64_t>(entry >> 32) + __popc(mask & ((1u << bit) - 1));
    return slot < at.capacity ? piece(message, slot) : nullptr;
  }

  // By every warp once in each send, when its own part of all messages is complete. `here`: shared by the block, 0 at
  // the start. The last warp of the last block sends them.
  __device__ void post(const Half& half, const Operation& op, unsigned* here) const {
    __syncwarp();
    bool last = false;
    if (lane_id() == 0) {
      __threadfence();
      if (atomicAdd(here, 1u) == kWarps - 1) {
        __threadfence();
        const unsigned long long rest = (1ull << kTicketBits) - (gridDim.x - 1);
        const unsigned long long mine = blockIdx.x == 0 ? rest : 1ull;
        const unsigned long long sum = atomicAdd(&world.control().posted, mine) + mine;
        last = (sum & ((1ull << kTicketBits) - 1)) == 0;
        __threadfence();
      }
    }
    if (!__shfl_sync(kAll, last, 0)) return;
    Control& control = world.control();
    const int other = 1 - op.half();
    // Nobody changes it now: this operation marks its own half.
    const std::uint64_t ack = control.consumed[op.lane][other];
    if (lane_id() == 0) {
      control.told[other] = ack;
      control.inbox[op.half()] = half.from_base(at.received);
      control.inbox_stride[op.half()] = at.slot_bytes;
    }
    for (int peer = lane_id(); peer < world.ranks; peer += kWarp) {
      if (near(peer)) continue;
      const std::uint32_t pieces = control.pieces[peer];
      control.pieces[peer] = 0;
      *reinterpret_cast<MessageHeader*>(outgoing(half, peer)) = {op.epoch, ack, op.signature, pieces};
      const std::int64_t filled = pieces < at.capacity ? pieces : at.capacity;
      of[peer].channel.putWithSignal(half.from_base(at.received + of[peer].slot_there * at.slot_bytes),
                                     half.from_base(at.sent + of[peer].slot_here * at.slot_bytes),
                                     at.pieces + filled * at.piece_bytes);
    }
  }

  // By one thread: waits for the message of `peer`, and looks whether it is of this operation. The other threads that
  // read it meet this one at a barrier.
  __device__ bool await(const Half& half, const Operation& op, int peer) const {
    if (!poll(world, op, peer, [&] { return arrived(peer, op.epoch); })) return false;
    const auto* header = reinterpret_cast<const MessageHeader*>(incoming(half, peer));
    const auto signature = static_cast<std::uint32_t>(load_relaxed(&header->signature));
    const bool alike = load_relaxed(&header->epoch) == op.epoch && signature == op.signature;
    if (!alike) {
      fail_unlike(world, op, peer, signature);
      return false;
    }
    // So that a deadline that passes does not name it.
    store_relaxed(&world.control().call[op.lane][op.parity()][peer], tagged(signature, op.epoch));
    return true;
  }
};

}  // namespace ep_core::cuda
