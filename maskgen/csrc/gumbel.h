// MaskLLM's relaxation (arXiv 2409.17481, equations 4-6): a Gumbel-softmax over the six placements.
#pragma once

#include "common/placements.h"
#include "noise.h"
#include "quads.h"

namespace twofour::learning {
namespace {

struct Placements {
  Floats y[6];     // probability of each placement, noise included
  Floats keep[4];  // expected keep of each position
};

inline Placements sample_placements(const float* logits, std::int64_t groups, int count,
                                    float kappa, float tau, const NoiseKey& key,
                                    std::uint32_t first_group) {
  Floats e[6];
  six_log_exponentials(philox(key, first_group), e);
  Placements s;
  Floats top = splat(-3.0e38f);
  const float inverse_tau = 1.0f / tau;
  for (int i = 0; i < 6; ++i) {
    s.y[i] = (load(logits + i * groups, count) * kappa - e[i]) * inverse_tau;
    top = max(top, s.y[i]);
  }
  Floats total{};
  for (int i = 0; i < 6; ++i) {
    s.y[i] = exp_nonpositive<Cephes>(s.y[i] - top);
    total += s.y[i];
  }
  const Floats scale = 1.0f / total;
  for (int i = 0; i < 6; ++i) s.y[i] *= scale;
  s.keep[0] = s.y[0] + s.y[1] + s.y[2];
  s.keep[1] = s.y[0] + s.y[3] + s.y[4];
  s.keep[2] = s.y[1] + s.y[3] + s.y[5];
  s.keep[3] = s.y[2] + s.y[4] + s.y[5];
  return s;
}

template <class Weight>
void gumbel_forward_row(const Weight* weight, const float* logits, std::int64_t groups, float kappa,
                        float tau, const NoiseKey& key, std::uint32_t first_group, Weight* masked) {
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    const Placements s = sample_placements(logits + g, groups, count, kappa, tau, key,
                                           first_group + static_cast<std::uint32_t>(g));
    Quad w = load_quad(weight + 4 * g, count);
    for (int j = 0; j < 4; ++j) w.v[j] *= s.keep[j];
    store_quad(masked + 4 * g, w, count);
  }
}

template <class Weight>
void gumbel_backward_row(const Weight* weight, const float* logits, const Weight* gradient,
                         std::int64_t groups, float kappa, float tau, const NoiseKey& key,
                         std::uint32_t first_group, float regularisation, float* out) {
  const float slope = kappa / tau;
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    const Placements s = sample_placements(logits + g, groups, count, kappa, tau, key,
                                           first_group + static_cast<std::uint32_t>(g));
    const Quad w = load_quad(weight + 4 * g, count);
    const Quad dw = load_quad(gradient + 4 * g, count);
    Floats keep_gradient[4];
    for (int j = 0; j < 4; ++j) {
      keep_gradient[j] = w.v[j] * (dw.v[j] - (2.0f * regularisation) * (w.v[j] * s.keep[j]));
    }
    Floats placement_gradient[6];
    Floats mean{};
    for (int i = 0; i < 6; ++i) {
      placement_gradient[i] =
          keep_gradient[placement_pairs[i][0]] + keep_gradient[placement_pairs[i][1]];
      mean += s.y[i] * placement_gradient[i];
    }
    for (int i = 0; i < 6; ++i) {
      float* plane = out + i * groups + g;
      store(plane, load(plane, count) + (s.y[i] * slope) * (placement_gradient[i] - mean), count);
    }
  }
}

// Arg-max (the lowest index wins a tie), how many differ from `compare`, and the sum over groups of
// the largest probability of softmax(kappa * logits).
inline void decide_placements_row(const float* logits, std::int64_t groups, float kappa,
                                  std::uint8_t* codes, const std::uint8_t* compare,
                                  std::int64_t& changed, double& sharpness) {
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    Floats value[6];
    Floats top = splat(-3.0e38f);
    Ints code{};
    for (int i = 0; i < 6; ++i) {
      value[i] = load(logits + g + i * groups, count);
      const Ints better = value[i] > top;
      code = better ? Ints{} + i : code;
      top = max(top, value[i]);
    }
    Floats total{};
    for (int i = 0; i < 6; ++i) total += exp_nonpositive<Cephes>((value[i] - top) * kappa);
    const Floats sharp = 1.0f / total;
    for (int lane = 0; lane < count; ++lane) {
      codes[g + lane] = static_cast<std::uint8_t>(code[lane]);
      sharpness += static_cast<double>(sharp[lane]);
      changed += compare[g + lane] != codes[g + lane];
    }
  }
}

}  // namespace
}  // namespace twofour::learning
