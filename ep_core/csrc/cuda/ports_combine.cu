// Low-latency combine for buffers whose ranks are on several nodes. Needs MSCCL++'s headers.
#include "low_latency_combine.cuh"
#include "ports.cuh"
#include "ports_face.hpp"

namespace ep_core::cuda {

cudaError_t prepare_ports_combine() { return prepare<true>(); }

cudaError_t launch_ports_combine(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                                 const CombineInput& in, const Map& map, void* out, const PortsOfBuffer& ports,
                                 int blocks, cudaStream_t stream) {
  const Chunks chunks = chunks_of(call.sizes.hidden, kCombineColumns);
  const MessageLayout at(call.sizes, world.ranks, ports.slots, layout, 0, chunks, 2 * chunks.columns);
  const CombineArgs<true> args{{world, layout, call, in, map, static_cast<std::byte*>(out), chunks},
                               {ports.of, ports.remote, at}};
  return in.local_reduce ? launch<true, true>(args, blocks, stream) : launch<false, true>(args, blocks, stream);
}

}  // namespace ep_core::cuda
