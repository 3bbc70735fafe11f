// Each kernel is written once, on GCC/Clang vector types of a width given by a template argument, and instantiated
// inside a function compiled for that width's instruction set. See kernels.hpp.
#include "kernels.hpp"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <string_view>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "control.hpp"

namespace ep_core {
namespace {

#define EP_INLINE inline __attribute__((always_inline))

template <int Lanes>
struct Vec {
  typedef float F __attribute__((vector_size(Lanes * 4)));
  typedef std::uint32_t U __attribute__((vector_size(Lanes * 4)));
  typedef std::uint16_t H __attribute__((vector_size(Lanes * 2)));
  typedef std::uint8_t B __attribute__((vector_size(Lanes)));
};

template <class V, class T>
EP_INLINE V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class T>
EP_INLINE void store(T* to, const V& value) {
  std::memcpy(to, &value, sizeof(V));
}

template <class To, class From>
EP_INLINE To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <int Lanes>
EP_INLINE typename Vec<Lanes>::F widen(const std::uint16_t* from) {
  using V = Vec<Lanes>;
  const auto wide = __builtin_convertvector(load<typename V::H>(from), typename V::U) << 16;
  return bits<typename V::F>(wide);
}

// The bits of bf16(value), in the upper half of each lane; the lower half is not cleared. Round to nearest even; any
// NaN becomes the quiet NaN that torch writes.
template <int Lanes>
EP_INLINE typename Vec<Lanes>::U round_to_bf16(const typename Vec<Lanes>::F& value) {
  using U = typename Vec<Lanes>::U;
  const U raw = bits<U>(value);
  const U is_nan = bits<U>((raw & 0x7fffffffu) > 0x7f800000u);
  return ((raw + 0x7fffu + ((raw >> 16) & 1u)) & ~is_nan) | (is_nan & 0x7fc00000u);
}

// 2 * Lanes * Blocks columns. A 32-bit lane holds two neighbours: shifting and masking widens the even and the odd one
// without any shuffle, and the results go back the same way.
template <int Lanes, int Blocks>
EP_INLINE void weighted_block(const std::uint16_t* const* rows, const float* weights, int count, std::uint16_t* out,
                              std::size_t column) {
  using F = typename Vec<Lanes>::F;
  using U = typename Vec<Lanes>::U;
  F even[Blocks] = {};
  F odd[Blocks] = {};
  for (int k = 0; k < count; ++k) {
    const std::uint16_t* row = rows[k] + column;
    const F weight = F{} + weights[k];
#pragma GCC unroll 8
    for (int b = 0; b < Blocks; ++b) {
      const U pairs = load<U>(row + b * 2 * Lanes);
      even[b] = even[b] + weight * bits<F>(pairs << 16);
      odd[b] = odd[b] + weight * bits<F>(pairs & 0xffff0000u);
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < Blocks; ++b) {
    const U pairs = (round_to_bf16<Lanes>(even[b]) >> 16) | (round_to_bf16<Lanes>(odd[b]) & 0xffff0000u);
    store(out + column + b * 2 * Lanes, pairs);
  }
}

template <int Lanes>
EP_INLINE void weighted_sum(const std::uint16_t* const* rows, const float* weights, int count, std::uint16_t* out,
                            std::size_t columns) {
  constexpr int kBlocks = 4;
  constexpr std::size_t kStep = 2 * Lanes;
  std::size_t column = 0;
  for (; column + kStep * kBlocks <= columns; column += kStep * kBlocks) {
    weighted_block<Lanes, kBlocks>(rows, weights, count, out, column);
  }
  for (; column + kStep <= columns; column += kStep) weighted_block<Lanes, 1>(rows, weights, count, out, column);
  for (; column < columns; column += 8) weighted_block<4, 1>(rows, weights, count, out, column);
}

template <int Lanes>
EP_INLINE void sum_block_f32(const float* const* rows, int count, float* out, std::size_t column) {
  using F = typename Vec<Lanes>::F;
  F sum = {};
  for (int k = 0; k < count; ++k) sum = sum + load<F>(rows[k] + column);
  store(out + column, sum);
}

template <int Lanes>
EP_INLINE void sum_rows_f32(const float* const* rows, int count, float* out, std::size_t columns) {
  std::size_t column = 0;
  for (; column + Lanes <= columns; column += Lanes) sum_block_f32<Lanes>(rows, count, out, column);
  for (; column < columns; column += 4) sum_block_f32<4>(rows, count, out, column);
}

// float32 to e4m3 bits. Magnitudes that round above 448 become NaN (torch does the same); the quantiser never makes
// one.
template <int Lanes>
EP_INLINE typename Vec<Lanes>::B to_e4m3(const typename Vec<Lanes>::F& value) {
  using V = Vec<Lanes>;
  using U = typename V::U;
  using F = typename V::F;
  const U raw = bits<U>(value);
  const U sign = (raw >> 24) & 0x80u;
  const U size = raw & 0x7fffffffu;
  // Normal results: drop 20 mantissa bits with rounding, move the exponent bias from 127 to 7.
  const U normal = (size - (120u << 23) + 0x7ffffu + ((size >> 20) & 1u)) >> 20;
  // Subnormal results are multiples of 2^-9: adding 2^14 leaves exactly those bits, rounded, at the mantissa's end.
  const U anchor = U{} + (141u << 23);
  const U small = bits<U>(bits<F>(size) + bits<F>(anchor)) - anchor;
  const U is_small = bits<U>(size < (121u << 23));
  const U is_large = bits<U>(size > 0x43e80000u);  // 464: half a step above 448
  const U finite = (small & is_small) | (normal & ~is_small);
  return __builtin_convertvector((finite & ~is_large) | (is_large & 0x7fu) | sign, typename V::B);
}

struct BlockScale {
  float scale;
  float multiplier;
};

EP_INLINE BlockScale block_scale(std::uint16_t largest, bool round_scale) {
  const float amax = std::bit_cast<float>(static_cast<std::uint32_t>(largest) << 16);
  const float floored = amax < 1e-4f ? 1e-4f : amax;
  if (!round_scale) return {floored / 448.0f, 448.0f / floored};
  const std::uint32_t raw = std::bit_cast<std::uint32_t>(floored / 448.0f);
  if (raw >= 0x7f800000u) return {floored, 448.0f / floored};
  const std::uint32_t power = (raw + 0x7fffffu) & 0x7f800000u;
  return {std::bit_cast<float>(power), 1.0f / std::bit_cast<float>(power)};
}

template <int Lanes>
EP_INLINE void quantise(const std::uint16_t* x, std::uint8_t* out, float* scales, std::size_t columns,
                        bool round_scale) {
  using H = typename Vec<Lanes>::H;
  using F = typename Vec<Lanes>::F;
  for (std::size_t block = 0; block < columns / kScaleBlock; ++block) {
    const std::uint16_t* from = x + block * kScaleBlock;
    // Without their sign bit, bf16 bits order as their magnitudes do, infinity and NaN last.
    H largest = {};
    for (int c = 0; c < kScaleBlock; c += Lanes) {
      const H size = load<H>(from + c) & 0x7fffu;
      largest = size > largest ? size : largest;
    }
    std::uint16_t top = 0;
    for (int lane = 0; lane < Lanes; ++lane) top = largest[lane] > top ? largest[lane] : top;
    const BlockScale block_scales = block_scale(top, round_scale);
    scales[block] = block_scales.scale;
    const F multiplier = F{} + block_scales.multiplier;
    for (int c = 0; c < kScaleBlock; c += Lanes) {
      store(out + block * kScaleBlock + c, to_e4m3<Lanes>(widen<Lanes>(from + c) * multiplier));
    }
  }
}

EP_INLINE void copy_and_fetch(void* to, const void* from, std::size_t bytes, const void* ahead) {
  constexpr std::size_t kStep = 128;
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  const auto* next = static_cast<const std::byte*>(ahead);
  std::size_t at = 0;
  for (; at + kStep <= bytes; at += kStep) {
    __builtin_prefetch(next + at, 0, 2);
    __builtin_prefetch(next + at + 64, 0, 2);
    std::memcpy(out + at, in + at, kStep);
  }
  std::memcpy(out + at, in + at, bytes - at);
}

#if defined(__x86_64__)

// Bytes before the first 64-byte boundary of `to`.
EP_INLINE std::size_t head_bytes(const void* to, std::size_t bytes) {
  const std::size_t head = (64 - (reinterpret_cast<std::uintptr_t>(to) & 63)) & 63;
  return head < bytes ? head : bytes;
}

#define EP_KERNELS(suffix, lanes, isa_flags)                                                                      \
  isa_flags void weighted_sum_##suffix(const std::uint16_t* const* rows, const float* weights, int count,         \
                                       std::uint16_t* out, std::size_t columns) {                                 \
    weighted_sum<lanes>(rows, weights, count, out, columns);                                                      \
  }                                                                                                               \
  isa_flags void sum_f32_##suffix(const float* const* rows, int count, float* out, std::size_t columns) {         \
    sum_rows_f32<lanes>(rows, count, out, columns);                                                               \
  }                                                                                                               \
  isa_flags void quantise_##suffix(const std::uint16_t* x, std::uint8_t* out, float* scales, std::size_t columns, \
                                   bool round_scale) {                                                            \
    quantise<lanes>(x, out, scales, columns, round_scale);                                                        \
  }                                                                                                               \
  isa_flags void copy_row_##suffix(void* to, const void* from, std::size_t bytes, const void* ahead) {            \
    copy_and_fetch(to, from, bytes, ahead);                                                                       \
  }

#define EP_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))
#define EP_AVX2 __attribute__((target("avx2")))

EP_KERNELS(avx512, 16, EP_AVX512)
EP_KERNELS(avx2, 8, EP_AVX2)
EP_KERNELS(baseline, 4, )

EP_AVX512 void stream_avx512(void* to, const void* from, std::size_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  const std::size_t head = head_bytes(to, bytes);
  std::memcpy(out, in, head);
  std::size_t at = head;
  for (; at + 256 <= bytes; at += 256) {
    const __m512i a = _mm512_loadu_si512(in + at);
    const __m512i b = _mm512_loadu_si512(in + at + 64);
    const __m512i c = _mm512_loadu_si512(in + at + 128);
    const __m512i d = _mm512_loadu_si512(in + at + 192);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + at), a);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + at + 64), b);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + at + 128), c);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + at + 192), d);
  }
  std::memcpy(out + at, in + at, bytes - at);
}

EP_AVX2 void stream_avx2(void* to, const void* from, std::size_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  std::size_t at = head_bytes(to, bytes);
  std::memcpy(out, in, at);
  for (; at + 64 <= bytes; at += 64) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + at));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + at + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out + at), a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out + at + 32), b);
  }
  std::memcpy(out + at, in + at, bytes - at);
}

void stream_baseline(void* to, const void* from, std::size_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  std::size_t at = head_bytes(to, bytes);
  std::memcpy(out, in, at);
  for (; at + 64 <= bytes; at += 64) {
    for (std::size_t i = 0; i < 64; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + at + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + at + i)));
    }
  }
  std::memcpy(out + at, in + at, bytes - at);
}

constexpr Kernels kAvx512{"avx512f",       weighted_sum_avx512, sum_f32_avx512,
                          quantise_avx512, copy_row_avx512,     stream_avx512};
constexpr Kernels kAvx2{"avx2", weighted_sum_avx2, sum_f32_avx2, quantise_avx2, copy_row_avx2, stream_avx2};
constexpr Kernels kBaseline{"baseline",        weighted_sum_baseline, sum_f32_baseline,
                            quantise_baseline, copy_row_baseline,     stream_baseline};

const Kernels& choose() {
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_avx2 = __builtin_cpu_supports("avx2");
  const char* wanted = std::getenv("EP_CORE_ISA");
  const std::string_view name = wanted == nullptr ? "" : wanted;
  if (name == kBaseline.isa) return kBaseline;
  if (has_avx2 && name == kAvx2.isa) return kAvx2;
  if (has_avx512) return kAvx512;
  return has_avx2 ? kAvx2 : kBaseline;
}

#else

void plain_copy(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

void weighted_sum_baseline(const std::uint16_t* const* rows, const float* weights, int count, std::uint16_t* out,
                           std::size_t columns) {
  weighted_sum<4>(rows, weights, count, out, columns);
}

void sum_f32_baseline(const float* const* rows, int count, float* out, std::size_t columns) {
  sum_rows_f32<4>(rows, count, out, columns);
}

void quantise_baseline(const std::uint16_t* x, std::uint8_t* out, float* scales, std::size_t columns,
                       bool round_scale) {
  quantise<4>(x, out, scales, columns, round_scale);
}

void copy_row_baseline(void* to, const void* from, std::size_t bytes, const void* ahead) {
  copy_and_fetch(to, from, bytes, ahead);
}

constexpr Kernels kBaseline{"baseline",        weighted_sum_baseline, sum_f32_baseline,
                            quantise_baseline, copy_row_baseline,     plain_copy};

const Kernels& choose() { return kBaseline; }

#endif

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* built_isas() {
#if defined(__x86_64__)
  return "avx512f,avx2,baseline";
#else
  return "baseline";
#endif
}

}  // namespace ep_core
