// Row kernels, one implementation per instruction set, chosen once when the module is loaded.
//
// All give the same bits on every instruction set: products and sums are rounded separately (no fused multiply-add),
// in the order given, and conversions round to nearest even.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ep_core {

// From this many received bytes on, rows are written around the caches: they would not stay there anyway.
constexpr std::int64_t kStreamFromBytes = 4 << 20;

struct Kernels {
  const char* isa;

  // out[c] = bf16(((0 + w[0] * rows[0][c]) + w[1] * rows[1][c]) + ...), accumulated in float32. columns % 8 == 0.
  void (*weighted_sum_bf16)(const std::uint16_t* const* rows, const float* weights, int count, std::uint16_t* out,
                            std::size_t columns);

  // out[c] = ((0 + rows[0][c]) + rows[1][c]) + ..., in float32.
  void (*sum_f32)(const float* const* rows, int count, float* out, std::size_t columns);

  // Per 128 columns: amax = max(|x|, 1e-4); scale = amax / 448, or with round_scale the next power of two not below;
  // out = e4m3(x * (448 / amax)), or with round_scale e4m3(x / scale). Writes columns / 128 scales. A NaN among the 128
  // makes its scale and all its values NaN; an infinity makes the scale infinite and the infinite values NaN.
  void (*quantise_e4m3)(const std::uint16_t* x, std::uint8_t* out, float* scales, std::size_t columns,
                        bool round_scale);

  // Copies a row while fetching `ahead`, the row to be copied next, which the hardware would not foresee.
  void (*copy_row)(void* to, const void* from, std::size_t bytes, const void* ahead);

  // Copies that do not keep the destination in the caches. Follow with store_fence() before publishing.
  void (*stream_copy)(void* to, const void* from, std::size_t bytes);
};

// The best implementation this CPU can run. EP_CORE_ISA=baseline|avx2|avx512f asks for another; an unknown or
// unusable name is ignored.
const Kernels& kernels();

// Names of the implementations in this build, best first, comma separated.
const char* built_isas();

// Orders streaming stores before later stores.
inline void store_fence() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

}  // namespace ep_core
