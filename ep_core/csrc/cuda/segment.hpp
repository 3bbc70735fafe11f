// A rank's symmetric segment on its GPU, its peers' segments as mapped here, and what kernels tell the host.
//
// Next to read: engine.hpp.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "ports_face.hpp"
#include "world.hpp"

namespace ep_core::cuda {

// Makes `device` current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

class Segment {
 public:
  // Takes and zeroes the memory. Throws std::runtime_error when the device has not enough.
  Segment(int rank, int ranks, std::int64_t nvl_bytes, std::int64_t rdma_bytes, double timeout_s, int device);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  // Of this rank's memory, for other processes: the bytes of a cudaIpcMemHandle_t.
  std::string ipc_handle() const;
  // Maps the peers, in rank order; the own entry is not looked at.
  void connect_ipc(const std::vector<std::string>& handles);
  // Likewise, where somebody else has mapped them and keeps them mapped; 0 for a rank of another node.
  void connect_pointers(const std::vector<std::uintptr_t>& bases);
  // After that, for ranks on several nodes: `make_ports`. The channels' memories begin where the segment does.
  // most_message_bytes: that their transport carries at once.
  void connect_ports(const std::vector<int>& node_of, const std::vector<std::string>& handles,
                     std::int64_t most_message_bytes);
  // Waits for the device, unmaps, frees. May be called twice.
  void destroy();

  // Throws std::runtime_error unless it is connected and not destroyed.
  const World& world() const;
  // None when all ranks are on one node.
  const PortsOfBuffer& ports() const { return ports_; }
  int device() const { return device_; }
  int multiprocessors() const { return multiprocessors_; }
  std::byte* base() const { return base_; }
  std::size_t size() const { return size_; }
  std::int64_t nvl_bytes() const { return nvl_bytes_; }
  std::int64_t rdma_bytes() const { return rdma_bytes_; }

  // What kernels have told; both in pinned memory that the host reads without a CUDA call.
  const volatile Failure& failure() const { return *failure_; }
  volatile Counts& counts() const { return *counts_; }
  Counts* counts_on_device() const { return counts_on_device_; }

 private:
  int device_;
  std::int64_t nvl_bytes_;
  std::int64_t rdma_bytes_;
  std::size_t size_ = 0;
  int multiprocessors_ = 0;
  std::byte* base_ = nullptr;
  Failure* failure_ = nullptr;
  Counts* counts_ = nullptr;
  Counts* counts_on_device_ = nullptr;
  std::vector<void*> opened_;
  bool connected_ = false;
  World world_{};
  PortsOfBuffer ports_;
};

}  // namespace ep_core::cuda
