// What can go wrong on the host side of the CUDA engine, and the check of every CUDA call.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace ep_core::cuda {

// A wrong argument. Becomes ValueError; nothing was launched.
class WrongArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Throws std::runtime_error, which becomes RuntimeError, when a CUDA call failed.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace ep_core::cuda
