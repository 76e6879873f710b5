// One token's activations as int8: symmetric, a scale for every block of inputs.
//
//   s = max |x| / 127       a = x * (127 / max |x|), rounded to the nearest, ties to even
//
// all in fp32, so that every instruction set gets the same bits. Where max |x| is below 2^-100 (so
// that 127 / max |x| could overflow), a and s are 0; where an activation is no finite number, s is
// NaN, and with it every output of the token.
#pragma once

#include "common/bf16.h"
#include "kernels/lowbit/layout.h"

namespace twofour::lowbit {
namespace {

inline float as_activation(float x) { return x; }
inline float as_activation(std::uint16_t x) { return bf16_to_float(x); }

struct ActivationScale {
  float scale, inverse;
};

// `largest`: the bits of max |x|. As integers they order as the numbers do, with infinities and NaN
// above all, whatever order they are compared in.
inline ActivationScale activation_scale(std::uint32_t largest) {
  if (largest >= 0x7f800000u) return {__builtin_nanf(""), 0.0f};
  if (largest < as_bits(0x1p-100f)) return {0.0f, 0.0f};
  const float most = as_float(largest);
  return {most / 127.0f, 127.0f / most};
}

// Adding 1.5 * 2^23 leaves no bits below one: the sum is rounded to an integer, which its lower
// bits hold.
inline std::int32_t rounded(float x) {
  constexpr float shift = 0x1.8p23f;
  return static_cast<std::int32_t>(as_bits(x + shift) - as_bits(shift));
}

// fp16 that is finite and not negative, as fp32, exactly. The bits in the place of fp32's are the
// number times 2^-112, subnormals too.
inline float half_to_float(std::uint16_t half) {
  return as_float(std::uint32_t{half} << 13) * 0x1p112f;
}
inline Floats half_to_float(Words halves) { return as_float(halves << 13) * 0x1p112f; }

}  // namespace
}  // namespace twofour::lowbit
