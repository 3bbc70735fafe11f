#include "outbox.hpp"

#include <atomic>
#include <cstring>
#include <stdexcept>

namespace ep_core {
namespace {

// In front of the bytes of each entry. A counter has none: its value stands in `size`.
struct Entry {
  std::uint64_t offset;
  std::uint64_t size;
  std::uint64_t is_counter;
};

void append(Message& message, const void* bytes, std::size_t size) {
  const auto* from = static_cast<const std::byte*>(bytes);
  message.insert(message.end(), from, from + size);
}

}  // namespace

void Outbox::put(std::uint64_t offset, const void* bytes, std::size_t size) {
  const Entry entry{offset, size, 0};
  append(open_, &entry, sizeof(entry));
  append(open_, bytes, size);
}

void Outbox::publish(std::uint64_t offset, std::uint64_t value) {
  const Entry entry{offset, value, 1};
  append(open_, &entry, sizeof(entry));
  {
    const std::lock_guard lock(mutex_);
    if (!closed_) messages_.push_back(std::move(open_));
  }
  open_ = {};
  filled_.notify_one();
}

std::optional<Message> Outbox::take(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  filled_.wait_for(lock, limit, [&] { return closed_ || !messages_.empty(); });
  if (messages_.empty()) return std::nullopt;
  Message message = std::move(messages_.front());
  messages_.pop_front();
  return message;
}

bool Outbox::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_ && messages_.empty();
}

void Outbox::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  filled_.notify_all();
}

void deliver(const std::byte* message, std::size_t bytes, std::byte* mirror, std::size_t size) {
  const auto wrong = [] { throw std::invalid_argument("a message from another node does not fit this buffer"); };
  for (std::size_t at = 0; at < bytes;) {
    Entry entry;
    if (bytes - at < sizeof(entry)) wrong();
    std::memcpy(&entry, message + at, sizeof(entry));
    at += sizeof(entry);
    const std::size_t length = entry.is_counter ? sizeof(std::uint64_t) : entry.size;
    if (entry.offset > size || length > size - entry.offset) wrong();
    if (entry.is_counter) {
      if (entry.offset % sizeof(std::uint64_t) != 0) wrong();
      std::atomic_ref(*reinterpret_cast<std::uint64_t*>(mirror + entry.offset))
          .store(entry.size, std::memory_order_release);
    } else {
      if (length > bytes - at) wrong();
      std::memcpy(mirror + entry.offset, message + at, length);
      at += length;
    }
  }
}

}  // namespace ep_core
