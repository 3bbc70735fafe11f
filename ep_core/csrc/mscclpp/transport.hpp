// The peers of one buffer as MSCCL++ knows them: what maps their memory on this node, and the channels through which
// kernels reach those of other nodes. Bound by module.cpp. Next to read: bootstrap.hpp, proxies.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <mscclpp/core.hpp>
#include <mscclpp/memory_channel.hpp>
#include <mscclpp/semaphore.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bootstrap.hpp"
#include "proxies.hpp"

namespace ep_core {

// Which ranks are on which node, and how those of other nodes are reached.
struct Nodes {
  std::vector<int> node_of;  // by rank; empty: all on one
  std::string transport;     // ib, ethernet or ipc
  int proxies = 0;           // threads that share the channels; at least 1 where there are several nodes
  double timeout_s = 0;      // of what a proxy waits for
};

// This rank's way to one rank, from this rank's segment to that rank's. To itself it has nothing but its memory. Where
// ranks are on several nodes every peer has all of it, in rank order, so that no kernel can meet an empty handle.
struct Entry {
  mscclpp::RegisteredMemory memory;  // that rank's segment; mapped here if it is on this node
  mscclpp::Connection connection;
  mscclpp::Semaphore semaphore;
  std::optional<mscclpp::MemoryChannel> channel;  // to a rank of this node
  mscclpp::Semaphore port_semaphore;
  std::optional<mscclpp::PortChannel> port;
};

class Transport {
 public:
  // Registers the `size` bytes of GPU memory at `base`, on `device`, and maps every peer's. Throws what the bootstrap
  // throws for a peer that does not answer, std::invalid_argument for one whose segment has another size,
  // mscclpp::BaseError for memory that cannot be shared or ranks that cannot be reached. If it throws, `server` has
  // been stopped.
  Transport(std::shared_ptr<mscclpp::Bootstrap> bootstrap, DescriptorServer& server, void* base, std::size_t size,
            int device, Nodes nodes);
  ~Transport() { close(); }
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  // Where each rank's segment is mapped here, in rank order; this rank's is its base, 0 for a rank of another node.
  std::vector<std::uintptr_t> addresses() const;
  // The bytes of each channel's mscclpp::PortChannelDeviceHandle, in rank order; this rank's are empty, and all are
  // where there is one node.
  std::vector<std::string> port_handles() const;
  // What ended a proxy; empty while all run.
  std::string failure() const;
  // Stops the proxies and unmaps the peers' memory without waiting for them. No kernel may use it any more. May be
  // called twice.
  void close();

 private:
  void connect(void* base, std::size_t size);
  bool near(int peer) const;
  // False when a proxy does not end, since its peer takes nothing any more.
  bool stop_proxies();

  int device_;
  Nodes nodes_;
  std::vector<std::shared_ptr<ProxyThread>> proxies_;
  std::unique_ptr<mscclpp::Communicator> communicator_;
  std::vector<Entry> entries_;
};

// InfiniBand devices that MSCCL++ finds here.
int ib_devices();

// For when MSCCL++ cannot be cleaned up: its device is lost, or a thread waits in it for good. It destroys its static
// objects in an order that crashes while it holds descriptors, so the process will exit without destroying any.
void abandon();

}  // namespace ep_core
