// In place of ports*.cu where this is built without MSCCL++: `port_handle_bytes` says so, and nobody asks for more.
#include <stdexcept>

#include "ports_face.hpp"

namespace ep_core::cuda {

std::size_t port_handle_bytes() { return 0; }

PortsOfBuffer make_ports(int, const std::vector<int>&, const std::vector<std::string>&) {
  throw std::runtime_error("ranks on several nodes: ep_core was built without MSCCL++");
}

cudaError_t prepare_ports_dispatch() { return cudaErrorNotSupported; }
cudaError_t prepare_ports_combine() { return cudaErrorNotSupported; }

cudaError_t launch_ports_dispatch(const World&, const LowLatencyLayout&, const LowLatencyCall&, const DispatchInput&,
                                  const DispatchOutput&, const Map&, const PortsOfBuffer&, int, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t launch_ports_combine(const World&, const LowLatencyLayout&, const LowLatencyCall&, const CombineInput&,
                                 const Map&, void*, const PortsOfBuffer&, int, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace ep_core::cuda
