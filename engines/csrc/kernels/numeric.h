// Scalar helpers of the kernels; common/lanes.h says why they are in an anonymous namespace.
#pragma once

#include "common/exp_log.h"

namespace twofour {
namespace {

inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// e^x for any x: what leaves [-87, 88] gets the value at its end; NaN stays NaN.
inline float exp_clamped(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  return exp_within_range<Taylor>(x);
}

// x * sigmoid(linear x + cubic x^3).
inline float gated_by(float x, float linear, float cubic) {
  // Where there is no cube, an x whose square overflows must not become NaN.
  const float slope = cubic == 0.0f ? linear : linear + cubic * (x * x);
  return x / (1.0f + exp_clamped(-(x * slope)));
}

}  // namespace
}  // namespace twofour
