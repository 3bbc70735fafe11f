// The physical limits that benchmarks/cuda_engine.py sets beside its figures: one kernel that puts bytes into a peer's
// memory, one that exchanges a flag with a peer, and one that does nothing. benchmarks/cuda_limits.py builds it and
// calls it; every function returns a cudaError_t.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kThreads = 1024;
constexpr int kUnroll = 4;
constexpr std::uint64_t kDeadlineNs = 5'000'000'000;

// Grid: as many blocks as processors are to be used; all threads alike. Memory traffic: each byte is read here once and
// written to the peer once, 16 at a time. Synchronization: none; the stream's end is the end.
__global__ void __launch_bounds__(kThreads, 1) limit_put(uint4* to, const uint4* from, std::size_t count) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * kThreads;
  std::size_t at = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; at + (kUnroll - 1) * stride < count; at += kUnroll * stride) {
    uint4 held[kUnroll];
#pragma unroll
    for (int part = 0; part < kUnroll; ++part) held[part] = from[at + part * stride];
#pragma unroll
    for (int part = 0; part < kUnroll; ++part) to[at + part * stride] = held[part];
  }
  for (; at < count; at += stride) to[at] = from[at];
}

// Grid: one thread. Tells the peer the number of this call, and waits until the peer has told as much. Memory traffic:
// one 64-bit word each way. Synchronization: st.release.sys and ld.acquire.sys on words with one writer each. `calls`
// is this rank's own: how many there have been, so that a captured call counts on. It is set to 0 by a call that waited
// in vain for `kDeadlineNs`, and every later call returns at once.
__global__ void limit_exchange(std::uint64_t* theirs, const std::uint64_t* mine, std::uint64_t* calls) {
  if (*calls == 0) return;
  const std::uint64_t number = (*calls)++;
  asm volatile("st.release.sys.global.b64 [%0], %1;" ::"l"(theirs), "l"(number) : "memory");
  std::uint64_t begun = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begun));
  for (std::uint64_t seen = 0, now = begun; seen < number;) {
    asm volatile("ld.acquire.sys.global.b64 %0, [%1];" : "=l"(seen) : "l"(mine) : "memory");
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    if (now - begun > kDeadlineNs) {
      *calls = 0;
      return;
    }
  }
}

__global__ void limit_empty() {}

}  // namespace

extern "C" {

const char* limit_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// Memory of the current device, filled with 0, and the 64 bytes by which another process opens it.
int limit_allocate(std::size_t bytes, void** memory, void* handle) {
  if (const cudaError_t error = cudaMalloc(memory, bytes)) return error;
  if (const cudaError_t error = cudaMemset(*memory, 0, bytes)) return error;
  cudaIpcMemHandle_t made;
  if (const cudaError_t error = cudaIpcGetMemHandle(&made, *memory)) return error;
  std::memcpy(handle, &made, sizeof made);
  return cudaDeviceSynchronize();
}

int limit_open(const void* handle, void** memory) {
  cudaIpcMemHandle_t given;
  std::memcpy(&given, handle, sizeof given);
  return cudaIpcOpenMemHandle(memory, given, cudaIpcMemLazyEnablePeerAccess);
}

int limit_close(void* memory) { return cudaIpcCloseMemHandle(memory); }

int limit_free(void* memory) { return cudaFree(memory); }

// How many exchanges there may have been, plus one; 0 stops them.
int limit_begin_exchanges(std::uint64_t* calls) {
  const std::uint64_t first = 1;
  return cudaMemcpy(calls, &first, sizeof first, cudaMemcpyHostToDevice);
}

// Whether no exchange has waited in vain.
int limit_exchanges_held(const std::uint64_t* calls, int* held) {
  std::uint64_t count = 0;
  const cudaError_t error = cudaMemcpy(&count, calls, sizeof count, cudaMemcpyDeviceToHost);
  *held = count != 0;
  return error;
}

int limit_put_bytes(void* to, const void* from, std::size_t bytes, int blocks, cudaStream_t stream) {
  limit_put<<<blocks, kThreads, 0, stream>>>(static_cast<uint4*>(to), static_cast<const uint4*>(from),
                                             bytes / sizeof(uint4));
  return cudaGetLastError();
}

int limit_exchange_flags(std::uint64_t* theirs, const std::uint64_t* mine, std::uint64_t* calls, cudaStream_t stream) {
  limit_exchange<<<1, 1, 0, stream>>>(theirs, mine, calls);
  return cudaGetLastError();
}

int limit_launch_nothing(cudaStream_t stream) {
  limit_empty<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}

}  // extern "C"
