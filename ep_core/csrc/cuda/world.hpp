// The ranks of a buffer and their segments, as kernels are given them: by value. Filled in by engine.cpp.
#pragma once

#include "layout.hpp"

namespace ep_core::cuda {

struct World {
  int rank;
  int ranks;
  std::uint64_t deadline_ns;  // of one wait
  Failure* failure;           // pinned host memory
  std::byte* base[kMaxRanks];
  std::int64_t low_latency;  // offset of the low-latency region
  std::int64_t ring;         // offset of the ring

  EP_HOST_DEVICE Control& control(int peer) const { return *reinterpret_cast<Control*>(base[peer]); }
  EP_HOST_DEVICE Control& control() const { return control(rank); }
};

}  // namespace ep_core::cuda
