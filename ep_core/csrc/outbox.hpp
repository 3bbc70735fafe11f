// What a rank's segment tells another node, on its way there.
//
// Ranks of one node map each other's segments. On every other node one rank, the holder, keeps a mirror of the segment:
// shared memory of the same layout, mapped by the ranks of that node in place of the segment. A rank puts the bytes
// that a node needs into that node's outbox, then publishes a counter, and the two travel as one message; the holder
// stores the bytes into the mirror, then the counter with release. So whoever reads a counter in a mirror may read what
// it stands for, as in a segment, and no operation knows the difference. A message crosses to a node once, however many
// of its ranks want the bytes.
//
// Messages are moved by threads of ep_core/couriers.py. Next to read: world.hpp.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

namespace ep_core {

using Message = std::vector<std::byte>;

class Outbox {
 public:
  // By the thread of the operation: bytes for the place `offset` of the mirror, to go with the next counter.
  void put(std::uint64_t offset, const void* bytes, std::size_t size);
  // The value of the counter at `offset`, stored once all that was put before is there. Completes a message.
  void publish(std::uint64_t offset, std::uint64_t value);

  // By a courier: the next message, or none if there is none within `limit` or ever, as the box was closed.
  std::optional<Message> take(std::chrono::milliseconds limit);
  bool closed() const;
  // What is in the box can still be taken.
  void close();

 private:
  mutable std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<Message> messages_;
  bool closed_ = false;
  Message open_;  // of the operation's thread alone
};

// Does what a message says to a mirror of `size` bytes. Throws std::invalid_argument for one that reaches beyond it.
void deliver(const std::byte* message, std::size_t bytes, std::byte* mirror, std::size_t size);

}  // namespace ep_core
