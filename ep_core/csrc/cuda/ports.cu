// The channels of a buffer whose ranks are on several nodes, as kernels find them. Needs MSCCL++'s headers.
#include <cstring>

#include "errors.hpp"
#include "ports.cuh"
#include "ports_face.hpp"

namespace ep_core::cuda {

using Handle = mscclpp::PortChannelDeviceHandle;

std::size_t port_handle_bytes() { return sizeof(Handle); }

PortsOfBuffer make_ports(int rank, const std::vector<int>& node_of, const std::vector<std::string>& handles) {
  const SlotsOfRank slots(rank, node_of);
  std::vector<PortOf<Handle>> ports(node_of.size());
  for (std::size_t peer = 0; peer < ports.size(); ++peer) {
    if ((slots.remote >> peer & 1) == 0) continue;
    const std::string& bytes = handles.at(peer);
    if (bytes.size() != sizeof(Handle)) {
      throw WrongArgument("handles: wanted " + std::to_string(sizeof(Handle)) + " bytes for each rank, got " +
                          std::to_string(bytes.size()) + ": ep_core._cuda and ep_core._mscclpp were built with " +
                          "different versions of MSCCL++; build them again");
    }
    std::memcpy(&ports[peer].channel, bytes.data(), sizeof(Handle));
    ports[peer].slot_here = slots.here[peer];
    ports[peer].slot_there = slots.there[peer];
  }
  void* on_device = nullptr;
  const std::size_t bytes = ports.size() * sizeof(ports[0]);
  check(cudaMalloc(&on_device, bytes), "memory for the channels to other nodes cannot be taken");
  const cudaError_t copied = cudaMemcpy(on_device, ports.data(), bytes, cudaMemcpyHostToDevice);
  if (copied != cudaSuccess) cudaFree(on_device);
  check(copied, "the channels to other nodes cannot be copied to the device");
  return {on_device, slots.remote, slots.most};
}

}  // namespace ep_core::cuda
