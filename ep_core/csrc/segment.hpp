// Shared memory without a name: a sealed memfd, so that whatever way a process dies nothing stays behind.
// Used by world.hpp.
#pragma once

#include <cstddef>
#include <memory>

namespace ep_core {

// A file descriptor that is closed with its owner.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = other.release();
    }
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void reset();

 private:
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  int fd_;
};

// A shared mapping of a whole memfd. Tensors that look into it hold a shared_ptr, so it outlives the buffer if need be.
class Mapping {
 public:
  Mapping(const Descriptor& fd, std::size_t bytes);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  std::size_t bytes_;
};

// A zero-filled, sparse memfd of `bytes`, whose size can no longer change. Throws std::system_error.
Descriptor create_memfd(std::size_t bytes);

// A peer's memfd through /proc/<pid>/fd/<fd>. Throws std::system_error.
Descriptor open_peer_memfd(int pid, int fd);

// Size of the file behind a descriptor, in bytes.
std::size_t file_bytes(const Descriptor& fd);

}  // namespace ep_core
