// MaskLLM's relaxation (arXiv 2409.17481, equations 4-6): a Gumbel-softmax over the six patterns.
#pragma once

#include "noise.h"

namespace twofour::learning {
namespace {

// Kept positions of the patterns 1100 1010 1001 0110 0101 0011.
constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

struct Patterns {
  Float y[6];     // probability of each pattern, noise included
  Float keep[4];  // expected keep of each position
};

inline Patterns sample_patterns(const float* logits, std::int64_t groups, int count, float kappa,
                                float tau, const NoiseKey& key, std::uint32_t first_group) {
  Float e[6];
  six_log_exponentials(philox(key, first_group), e);
  Patterns s;
  Float top = splat(-3.0e38f);
  const float inverse_tau = 1.0f / tau;
  for (int i = 0; i < 6; ++i) {
    s.y[i] = (load(logits + i * groups, count) * kappa - e[i]) * inverse_tau;
    top = max(top, s.y[i]);
  }
  Float total{};
  for (int i = 0; i < 6; ++i) {
    s.y[i] = exp(s.y[i] - top);
    total += s.y[i];
  }
  const Float scale = 1.0f / total;
  for (int i = 0; i < 6; ++i) s.y[i] *= scale;
  s.keep[0] = s.y[0] + s.y[1] + s.y[2];
  s.keep[1] = s.y[0] + s.y[3] + s.y[4];
  s.keep[2] = s.y[1] + s.y[3] + s.y[5];
  s.keep[3] = s.y[2] + s.y[4] + s.y[5];
  return s;
}

template <typename Weight>
void gumbel_forward_row(const Weight* weight, const float* logits, std::int64_t groups, float kappa,
                        float tau, const NoiseKey& key, std::uint32_t first_group, Weight* masked) {
  for (std::int64_t g = 0; g < groups; g += kLanes) {
    const int count = groups - g < kLanes ? static_cast<int>(groups - g) : kLanes;
    const Patterns s = sample_patterns(logits + g, groups, count, kappa, tau, key,
                                       first_group + static_cast<std::uint32_t>(g));
    Quad w = load_quad(weight + 4 * g, count);
    for (int j = 0; j < 4; ++j) w.v[j] *= s.keep[j];
    store_quad(masked + 4 * g, w, count);
  }
}

template <typename Weight>
void gumbel_backward_row(const Weight* weight, const float* logits, const Weight* gradient,
                         std::int64_t groups, float kappa, float tau, const NoiseKey& key,
                         std::uint32_t first_group, float regularisation, float* out) {
  const float slope = kappa / tau;
  for (std::int64_t g = 0; g < groups; g += kLanes) {
    const int count = groups - g < kLanes ? static_cast<int>(groups - g) : kLanes;
    const Patterns s = sample_patterns(logits + g, groups, count, kappa, tau, key,
                                       first_group + static_cast<std::uint32_t>(g));
    const Quad w = load_quad(weight + 4 * g, count);
    const Quad dw = load_quad(gradient + 4 * g, count);
    Float keep_gradient[4];
    for (int j = 0; j < 4; ++j) {
      keep_gradient[j] = w.v[j] * (dw.v[j] - (2.0f * regularisation) * (w.v[j] * s.keep[j]));
    }
    Float pattern_gradient[6];
    Float mean{};
    for (int i = 0; i < 6; ++i) {
      pattern_gradient[i] = keep_gradient[kPairs[i][0]] + keep_gradient[kPairs[i][1]];
      mean += s.y[i] * pattern_gradient[i];
    }
    for (int i = 0; i < 6; ++i) {
      float* plane = out + i * groups + g;
      store(plane, load(plane, count) + (s.y[i] * slope) * (pattern_gradient[i] - mean), count);
    }
  }
}

// Arg-max (the lowest index wins a tie), how many differ from `compare`, and the sum over groups of
// the largest probability of softmax(kappa * logits).
inline void decide_patterns_row(const float* logits, std::int64_t groups, float kappa,
                                std::uint8_t* codes, const std::uint8_t* compare,
                                std::int64_t& changed, double& sharpness) {
  for (std::int64_t g = 0; g < groups; g += kLanes) {
    const int count = groups - g < kLanes ? static_cast<int>(groups - g) : kLanes;
    Float value[6];
    Float top = splat(-3.0e38f);
    Int code{};
    for (int i = 0; i < 6; ++i) {
      value[i] = load(logits + g + i * groups, count);
      const Int better = value[i] > top;
      code = better ? Int{} + i : code;
      top = max(top, value[i]);
    }
    Float total{};
    for (int i = 0; i < 6; ++i) total += exp((value[i] - top) * kappa);
    const Float sharp = 1.0f / total;
    for (int lane = 0; lane < count; ++lane) {
      codes[g + lane] = static_cast<std::uint8_t>(code[lane]);
      sharpness += static_cast<double>(sharp[lane]);
      changed += compare[g + lane] != codes[g + lane];
    }
  }
}

}  // namespace
}  // namespace twofour::learning
