// High throughput as the binding calls it: checks that rows fit the ring, launches, waits for counts.
//
// Called by module.cpp. Next to read: high_throughput.hpp.
#pragma once

#include <utility>
#include <vector>

#include "high_throughput.hpp"
#include "segment.hpp"

namespace ep_core::cuda {

class HighThroughput {
 public:
  explicit HighThroughput(Segment& segment);

  // The least `nvl_bytes` with which rows of `row_bytes`, and `extra_bytes` that travel with each, go at all.
  static std::int64_t least_bytes(std::int64_t row_bytes, std::int64_t extra_bytes, int ranks);

  void layout(const HtLayout& arguments, cudaStream_t stream) const;
  // `host_wanted`: `counts` will be asked for what this launch finds.
  void notify(HtNotify arguments, bool host_wanted, cudaStream_t stream);
  // Waits for the last notify: rows that come, and rows of each of the first `experts` local experts. Throws
  // std::runtime_error when they are not there within `timeout_s`, or when a kernel has told of a failure.
  std::pair<std::int64_t, std::vector<std::int64_t>> counts(double timeout_s) const;
  void dispatch(const HtDispatch& arguments, int multiprocessors, cudaStream_t stream) const;
  void combine(const HtCombine& arguments, int multiprocessors, cudaStream_t stream) const;

 private:
  void check_fits(const PlaceLayout& place) const;
  int blocks(int wanted) const;

  Segment& segment_;
  int local_experts_ = 0;  // of the last notify
};

}  // namespace ep_core::cuda
