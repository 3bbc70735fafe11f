// Low-latency dispatch for buffers whose ranks are all on one node.
#include "low_latency_dispatch.cuh"

namespace ep_core::cuda {

cudaError_t prepare_dispatch() {
  const cudaError_t prepared = prepare<false, false>();
  return prepared == cudaSuccess ? prepare<true, false>() : prepared;
}

cudaError_t launch_dispatch(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                            const DispatchInput& in, const DispatchOutput& out, const Map& map, int blocks,
                            cudaStream_t stream) {
  const DispatchArgs<false> args{world, layout, call, in, out, map, chunks_of(call.sizes.hidden, kDispatchColumns)};
  return in.fp8 ? launch<true, false>(args, blocks, stream) : launch<false, false>(args, blocks, stream);
}

}  // namespace ep_core::cuda
