// What kernels told of a failure, for people.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "segment.hpp"

namespace ep_core::cuda {

struct Told {
  std::string phase;  // dispatch or combine
  int kind;           // 1 a deadline passed, 2 a wrong argument on some rank
  std::vector<int> ranks;
  double waited_s;
  std::string text;  // for kind 2
};

// Nothing when all is well. Never waits.
std::optional<Told> told(const Segment& segment);

}  // namespace ep_core::cuda
