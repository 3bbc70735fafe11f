// Low-latency dispatch for buffers whose ranks are on several nodes. Needs MSCCL++'s headers.
#include "low_latency_dispatch.cuh"
#include "ports.cuh"
#include "ports_face.hpp"

namespace ep_core::cuda {

cudaError_t prepare_ports_dispatch() {
  const cudaError_t prepared = prepare<false, true>();
  return prepared == cudaSuccess ? prepare<true, true>() : prepared;
}

cudaError_t launch_ports_dispatch(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                                  const DispatchInput& in, const DispatchOutput& out, const Map& map,
                                  const PortsOfBuffer& ports, int blocks, cudaStream_t stream) {
  const Chunks chunks = chunks_of(call.sizes.hidden, kDispatchColumns);
  const std::int64_t piece_bytes = in.fp8 ? quantised_bytes(chunks.columns) : 2 * chunks.columns;
  const MessageLayout at(call.sizes, world.ranks, ports.slots, layout, call.topk, chunks, piece_bytes);
  const DispatchArgs<true> args{{world, layout, call, in, out, map, chunks}, {ports.of, ports.remote, at}};
  return in.fp8 ? launch<true, true>(args, blocks, stream) : launch<false, true>(args, blocks, stream);
}

}  // namespace ep_core::cuda
