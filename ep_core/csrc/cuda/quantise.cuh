// bf16 to e4m3 with a float32 scale for each 128 columns, bit for bit as the host engine does it (kernels.cpp).
#pragma once

#include "low_latency.cuh"

namespace ep_core::cuda {

// The scale of 128 columns and what to multiply them by; see docs/ep_core.md, "fp8".
__device__ inline float2 block_scale(std::uint32_t largest, bool round_scale) {
  const float amax = __uint_as_float(largest << 16);
  const float floored = amax < 1e-4f ? 1e-4f : amax;
  const float scale = __fdiv_rn(floored, 448.0f);
  const float multiplier = __fdiv_rn(448.0f, floored);
  if (!round_scale) return {scale, multiplier};
  const std::uint32_t bits = __float_as_uint(scale);
  if (bits >= 0x7f800000u) return {floored, multiplier};
  const float power = __uint_as_float((bits + 0x7fffffu) & 0x7f800000u);
  return {power, __fdiv_rn(1.0f, power)};
}

__device__ inline std::uint32_t pack_e4m3(std::uint32_t pair, float multiplier) {
  const float low = __fmul_rn(__uint_as_float(pair << 16), multiplier);
  const float high = __fmul_rn(__uint_as_float(pair & 0xffff0000u), multiplier);
  std::uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

// By a warp: bf16 columns to e4m3 with a float32 scale for each 128, behind the columns. 16 lanes take a block of 128.
__device__ inline void quantise(const std::byte* raw, std::byte* to, int columns, bool round_scale) {
  const int blocks = columns / kScaleBlock;
  auto* scales = reinterpret_cast<float*>(to + columns);
  for (int pair = 0; pair < blocks; pair += 2) {
    const int block = pair + lane_id() / 16;
    const bool active = block < blocks;
    const int column = block * kScaleBlock + lane_id() % 16 * 8;
    uint4 value{};
    if (active) value = *reinterpret_cast<const uint4*>(raw + 2 * column);
    const std::uint32_t sizes = 0x7fff7fffu;
    const std::uint32_t top =
        __vmaxu2(__vmaxu2(value.x & sizes, value.y & sizes), __vmaxu2(value.z & sizes, value.w & sizes));
    std::uint32_t largest = max(top & 0xffffu, top >> 16);
    for (int step = 8; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(kAll, largest, step));
    const float2 scale = block_scale(largest, round_scale);
    if (!active) continue;
    const std::uint32_t first = pack_e4m3(value.x, scale.y) | pack_e4m3(value.y, scale.y) << 16;
    const std::uint32_t second = pack_e4m3(value.z, scale.y) | pack_e4m3(value.w, scale.y) << 16;
    *reinterpret_cast<uint2*>(to + column) = {first, second};
    if (lane_id() % 16 == 0) scales[block] = scale.x;
  }
}

}  // namespace ep_core::cuda
