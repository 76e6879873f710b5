// bf16 is the upper half of a float: widening is a shift, narrowing a rounding.
#pragma once

#include "common/lanes.h"

namespace twofour {
namespace {

inline float bf16_to_float(std::uint16_t value) { return as_float(std::uint32_t{value} << 16); }

// Nearest even; NaN stays a (quiet) NaN.
inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = as_bits(value);
  // Adding just under half of the last place that stays, and one more where that place is odd,
  // carries exactly when the half that goes is above one half, or is one half beside an odd place.
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // A NaN whose payload lies in the lower half would become an infinity, or carry into the sign.
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// The same rounding, left in the upper halves. Not for NaNs with a payload in the lower half, which
// arithmetic never makes.
inline Words round_to_bf16(Floats x) {
  const Words bits = as_bits(x);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// Pairs of bf16, the first of each in the lower half of its word. The second needs no shift: what
// is below the upper half only has to be cleared.
inline Floats first_of_pairs(Words pairs) { return as_float(pairs << 16); }
inline Floats second_of_pairs(Words pairs) { return as_float(pairs & 0xffff0000u); }

}  // namespace
}  // namespace twofour
