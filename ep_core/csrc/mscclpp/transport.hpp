// The peers of one buffer as MSCCL++ knows them: what maps their memory, and what kernels could signal them through.
// Bound by module.cpp. Next to read: bootstrap.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <mscclpp/core.hpp>
#include <mscclpp/memory_channel.hpp>
#include <mscclpp/semaphore.hpp>
#include <optional>
#include <vector>

#include "bootstrap.hpp"

namespace ep_core {

// This rank's way to one rank. To itself it has nothing but its memory.
struct Entry {
  mscclpp::RegisteredMemory memory;  // that rank's segment, mapped here
  mscclpp::Connection connection;
  mscclpp::Semaphore semaphore;
  std::optional<mscclpp::MemoryChannel> channel;  // from this rank's segment to that rank's
};

class Transport {
 public:
  // Registers the `size` bytes of GPU memory at `base`, on `device`, and maps every peer's. Throws what the bootstrap
  // throws for a peer that does not answer, std::invalid_argument for one whose segment has another size,
  // mscclpp::BaseError for memory that cannot be shared. If it throws, `server` has been stopped.
  Transport(std::shared_ptr<mscclpp::Bootstrap> bootstrap, DescriptorServer& server, void* base, std::size_t size,
            int device);
  ~Transport() { close(); }
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  // Where each rank's segment is mapped here, in rank order; this rank's is its base.
  std::vector<std::uintptr_t> addresses() const;
  // Unmaps the peers' memory without waiting for them. No kernel may use it any more. May be called twice.
  void close();

 private:
  void connect(void* base, std::size_t size);

  int device_;
  std::unique_ptr<mscclpp::Communicator> communicator_;
  std::vector<Entry> entries_;
};

// For when MSCCL++ cannot be cleaned up: its device is lost, or a thread waits in it for good. It destroys its static
// objects in an order that crashes while it holds descriptors, so the process will exit without destroying any.
void abandon();

}  // namespace ep_core
