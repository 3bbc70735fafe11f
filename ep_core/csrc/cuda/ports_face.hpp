// The kernels for ranks on several nodes as the host knows them: there where MSCCL++ was found when this was built.
// Plain C++; called by low_latency.cpp and segment.cpp. Its implementation is ports*.cu, or ports_absent.cpp.
//
// Next to read: ports.hpp.
#pragma once

#include <string>
#include <vector>

#include "low_latency.hpp"
#include "ports.hpp"

namespace ep_core::cuda {

// The channels of one buffer. of: PortOf[ranks] in device memory. slots: the most ranks of other nodes that any rank
// has.
struct PortsOfBuffer {
  void* of = nullptr;
  std::uint64_t remote = 0;
  int slots = 0;
  std::int64_t most_message_bytes = 0;  // that the transport carries at once
};

// Which slot of a half's messages belongs to which pair: a rank's peers of other nodes have its slots in rank order.
struct SlotsOfRank {
  std::uint64_t remote = 0;  // the ranks of other nodes, one bit each
  int most = 0;              // of any rank
  std::vector<int> here;     // by peer: its slot here, -1 for a rank of this node
  std::vector<int> there;    // this rank's slot there

  // node_of: by rank.
  SlotsOfRank(int rank, const std::vector<int>& node_of);
};

// Bytes of a device handle of a channel; 0 where this was built without MSCCL++.
std::size_t port_handle_bytes();
// Copies the channels' device handles, in rank order, to the current device; of this node's ranks they are empty.
// node_of: by rank. The caller frees `of`.
PortsOfBuffer make_ports(int rank, const std::vector<int>& node_of, const std::vector<std::string>& handles);

cudaError_t prepare_ports_dispatch();
cudaError_t prepare_ports_combine();
cudaError_t launch_ports_dispatch(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                                  const DispatchInput& in, const DispatchOutput& out, const Map& map,
                                  const PortsOfBuffer& ports, int blocks, cudaStream_t stream);
cudaError_t launch_ports_combine(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                                 const CombineInput& in, const Map& map, void* out, const PortsOfBuffer& ports,
                                 int blocks, cudaStream_t stream);

}  // namespace ep_core::cuda
