#include "segment.hpp"

#include <cuda_runtime.h>

#include <cstring>

#include "errors.hpp"

namespace ep_core::cuda {
namespace {

// Memory that other processes map should be an allocation of its own, which the driver makes from this size on.
constexpr std::int64_t kGranularity = 2 << 20;

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "the current device cannot be asked for");
  if (before_ == device) return;
  check(cudaSetDevice(device), "the device cannot be used");
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

Segment::Segment(int rank, int ranks, std::int64_t nvl_bytes, std::int64_t rdma_bytes, double timeout_s, int device)
    : device_(device), nvl_bytes_(nvl_bytes), rdma_bytes_(rdma_bytes) {
  const DeviceGuard guard(device);
  check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
        "the device's multiprocessors cannot be counted");
  world_.rank = rank;
  world_.ranks = ranks;
  world_.deadline_ns = static_cast<std::uint64_t>(timeout_s * 1e9);
  world_.low_latency = kControlBytes;
  world_.ring = kControlBytes + align_up(rdma_bytes, kPage);
  size_ = static_cast<std::size_t>(align_up(world_.ring + align_up(nvl_bytes, kPage), kGranularity));
  try {
    const cudaError_t got = cudaMalloc(&base_, size_);
    if (got == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw std::runtime_error("the buffer wants " + std::to_string(size_) +
                               " bytes on the GPU, which has not so many free");
    }
    check(got, "the buffer's memory cannot be taken");
    check(cudaMemset(base_, 0, size_), "the buffer's memory cannot be cleared");
    check(cudaHostAlloc(&failure_, sizeof(Failure), cudaHostAllocMapped | cudaHostAllocPortable), "pinned memory");
    check(cudaHostAlloc(&counts_, sizeof(Counts), cudaHostAllocMapped | cudaHostAllocPortable), "pinned memory");
    std::memset(failure_, 0, sizeof(Failure));
    std::memset(counts_, 0, sizeof(Counts));
    check(cudaHostGetDevicePointer(&world_.failure, failure_, 0), "pinned memory on the device");
    check(cudaHostGetDevicePointer(&counts_on_device_, counts_, 0), "pinned memory on the device");
    check(cudaDeviceSynchronize(), "the buffer's memory cannot be cleared");
  } catch (...) {
    destroy();
    throw;
  }
}

Segment::~Segment() {
  try {
    destroy();
  } catch (...) {
    // The device is lost, and its memory with it.
  }
}

std::string Segment::ipc_handle() const {
  const DeviceGuard guard(device_);
  cudaIpcMemHandle_t handle;
  check(cudaIpcGetMemHandle(&handle, base_), "the buffer's memory cannot be shown to other processes");
  return {reinterpret_cast<const char*>(&handle), sizeof handle};
}

void Segment::connect_ipc(const std::vector<std::string>& handles) {
  const DeviceGuard guard(device_);
  for (int peer = 0; peer < world_.ranks; ++peer) {
    if (peer == world_.rank) {
      world_.base[peer] = base_;
      continue;
    }
    cudaIpcMemHandle_t handle;
    const std::string& bytes = handles.at(static_cast<std::size_t>(peer));
    if (bytes.size() != sizeof handle) throw WrongArgument("handles: wanted 64 bytes each");
    std::memcpy(&handle, bytes.data(), sizeof handle);
    void* mapped = nullptr;
    check(cudaIpcOpenMemHandle(&mapped, handle, cudaIpcMemLazyEnablePeerAccess),
          ("the memory of rank " + std::to_string(peer) + " cannot be mapped").c_str());
    opened_.push_back(mapped);
    world_.base[peer] = static_cast<std::byte*>(mapped);
  }
  connected_ = true;
}

void Segment::connect_pointers(const std::vector<std::uintptr_t>& bases) {
  for (int peer = 0; peer < world_.ranks; ++peer) {
    world_.base[peer] =
        peer == world_.rank ? base_ : reinterpret_cast<std::byte*>(bases.at(static_cast<std::size_t>(peer)));
  }
  connected_ = true;
}

void Segment::connect_ports(const std::vector<int>& node_of, const std::vector<std::string>& handles,
                            std::int64_t most_message_bytes) {
  constexpr std::size_t kMostBytes = 1ull << 32;  // a channel's requests have offsets of 32 bits
  if (static_cast<int>(node_of.size()) != world_.ranks) throw WrongArgument("node_of: wanted a node for each rank");
  if (size_ > kMostBytes) {
    throw WrongArgument("num_rdma_bytes and num_nvl_bytes: over several nodes a buffer has at most " +
                        std::to_string(kMostBytes) + " bytes, got " + std::to_string(size_));
  }
  const DeviceGuard guard(device_);
  ports_ = make_ports(world_.rank, node_of, handles);
  ports_.most_message_bytes = most_message_bytes;
}

void Segment::destroy() {
  connected_ = false;
  if (base_ == nullptr && failure_ == nullptr) return;
  const DeviceGuard guard(device_);
  const cudaError_t ended = cudaDeviceSynchronize();
  for (void* mapped : opened_) cudaIpcCloseMemHandle(mapped);
  opened_.clear();
  cudaFree(ports_.of);
  ports_ = {};
  cudaFree(base_);
  cudaFreeHost(failure_);
  cudaFreeHost(counts_);
  base_ = nullptr;
  failure_ = nullptr;
  counts_ = nullptr;
  check(ended, "the device has failed");
}

const World& Segment::world() const {
  if (base_ == nullptr) throw std::runtime_error("the buffer cannot be used: it was destroyed");
  if (!connected_) throw std::runtime_error("the buffer cannot be used: it is not connected to its peers");
  return world_;
}

}  // namespace ep_core::cuda
