// Scalar helpers that every kernel file inlines. `static`, and free of the standard library: files
// built for different instruction sets must not share an inline function, since the linker keeps
// only one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace twofour {

static inline float as_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
static inline std::uint32_t as_bits(float value) {
  return __builtin_bit_cast(std::uint32_t, value);
}

static inline float bf16_to_float(std::uint16_t value) {
  return as_float(std::uint32_t{value} << 16);
}

// Nearest even; NaN stays a (quiet) NaN.
static inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = as_bits(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

static inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// e^x within 2 ulp for x in [-87, 88], clamped outside; NaN stays NaN. Branch-free, so loops over
// it become vector code, and the same on every instruction set (contraction is off in these files).
static inline float exp_clamped(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted =
      x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits hold round(x / ln 2)
  const float n = shifted - 12582912.0f;
  const float r =
      (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts (Cody and Waite)
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return as_float(as_bits(p) + (as_bits(shifted) << 23));
}

static inline float silu(float x) { return x / (1.0f + exp_clamped(-x)); }

}  // namespace twofour
