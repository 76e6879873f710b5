// RMSNorm of one row and its gradient, in one pass each: maskgen/learning/norms.py says of what.
#pragma once

#include "loss.h"

namespace twofour::learning {
namespace {

inline Floats rounded_like(const float*, Floats x) { return x; }
inline Floats rounded_like(const std::uint16_t*, Floats x) {
  return as_float(round_to_bf16(x) & 0xffff0000u);
}

// y = weight * round(x * scale), scale = 1 / sqrt(mean x^2 + epsilon), which is returned.
template <class Value>
float rms_norm_row(const Value* x, const Value* weight, std::int64_t size, float epsilon,
                   Value* y) {
  Floats squares{};
  for (std::int64_t i = 0; i < size; i += lanes) {
    const Floats v = load_values(x + i);
    squares += v * v;
  }
  const float mean = static_cast<float>(sum_of(squares)) / static_cast<float>(size);
  const float scale = 1.0f / __builtin_sqrtf(mean + epsilon);
  for (std::int64_t i = 0; i < size; i += lanes) {
    const Floats normal = rounded_like(x, load_values(x + i) * scale);
    store_values(y + i, load_values(weight + i) * normal);
  }
  return scale;
}

// dx = scale * (g - n * mean(g * n)) with g = weight * dy and n = x * scale.
template <class Value>
void rms_norm_gradient_row(const Value* x, const Value* weight, const Value* dy, std::int64_t size,
                           float scale, Value* dx) {
  Floats products{};
  for (std::int64_t i = 0; i < size; i += lanes) {
    products += load_values(weight + i) * load_values(dy + i) * load_values(x + i);
  }
  const float mean = static_cast<float>(sum_of(products)) / static_cast<float>(size);
  const float pull = mean * scale * scale;
  for (std::int64_t i = 0; i < size; i += lanes) {
    const Floats g = load_values(weight + i) * load_values(dy + i);
    store_values(dx + i, scale * (g - load_values(x + i) * pull));
  }
}

}  // namespace
}  // namespace twofour::learning
