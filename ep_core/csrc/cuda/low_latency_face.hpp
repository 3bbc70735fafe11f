// Low latency as the binding calls it: checks that sizes fit, fills in what kernels want to know, launches.
//
// Called by module.cpp. Next to read: low_latency.hpp.
#pragma once

#include "low_latency.hpp"
#include "segment.hpp"

namespace ep_core::cuda {

class LowLatency {
 public:
  explicit LowLatency(const Segment& segment);

  // Once, when the segment has ports: allows their kernels the shared memory they use.
  void prepare_ports() const;
  // Throws WrongArgument unless operations of these sizes fit the buffer and the kernels.
  void check_fits(const LowLatencySizes& sizes) const;
  // `call.signature` is filled in here. multiprocessors: how many to use, 0 for all.
  void dispatch(const LowLatencyCall& call, const DispatchInput& in, const DispatchOutput& out, const Map& map,
                int multiprocessors, cudaStream_t stream) const;
  void combine(const LowLatencyCall& call, const CombineInput& in, const Map& map, void* out, int multiprocessors,
               cudaStream_t stream) const;

 private:
  // What messages between nodes take of a half.
  std::int64_t messages(const LowLatencySizes& sizes) const;
  LowLatencyLayout layout(const LowLatencySizes& sizes) const;
  int blocks(int wanted) const;

  const Segment& segment_;
};

}  // namespace ep_core::cuda
