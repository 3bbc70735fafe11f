// Low-latency combine for buffers whose ranks are all on one node.
#include "low_latency_combine.cuh"

namespace ep_core::cuda {

cudaError_t prepare_combine() { return prepare<false>(); }

cudaError_t launch_combine(const World& world, const LowLatencyLayout& layout, const LowLatencyCall& call,
                           const CombineInput& in, const Map& map, void* out, int blocks, cudaStream_t stream) {
  const CombineArgs<false> args{
      world, layout, call, in, map, static_cast<std::byte*>(out), chunks_of(call.sizes.hidden, kCombineColumns)};
  return in.local_reduce ? launch<true, false>(args, blocks, stream) : launch<false, false>(args, blocks, stream);
}

}  // namespace ep_core::cuda
