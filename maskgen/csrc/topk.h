// RoI's relaxation (arXiv 2608.23048): Gumbel top-2 of four, relaxed as in "Reparameterizable
// subset sampling via continuous relaxations" (Xie and Ermon, 2019).
//   a1 = logits / lambda + gumbel,  mu1 = softmax(a1 / tau)
//   a2 = a1 + log(1 - mu1),         mu2 = softmax(a2 / tau),   keep = mu1 + mu2
#pragma once

#include "noise.h"
#include "quads.h"

namespace twofour::learning {
namespace {

struct Soft {
  Floats p[4];
  Floats rest[4];  // 1 - p without cancellation: the sum of the others
};

inline Soft softmax_of_four(const Floats a[4], float inverse_tau) {
  const Floats top = max(max(a[0], a[1]), max(a[2], a[3]));
  Soft s;
  Floats e[4];
  for (int j = 0; j < 4; ++j) e[j] = exp_nonpositive<Cephes>((a[j] - top) * inverse_tau);
  const Floats front = e[0] + e[1];
  const Floats back = e[2] + e[3];
  const Floats scale = 1.0f / (front + back);
  for (int j = 0; j < 4; ++j) s.p[j] = e[j] * scale;
  s.rest[0] = (e[1] + back) * scale;
  s.rest[1] = (e[0] + back) * scale;
  s.rest[2] = (front + e[3]) * scale;
  s.rest[3] = (front + e[2]) * scale;
  for (int j = 0; j < 4; ++j) s.rest[j] = max(s.rest[j], splat(1.0e-30f));
  return s;
}

struct TopTwo {
  Soft first;
  Soft second;
};

inline TopTwo relax_top_two(const float* logits, std::int64_t groups, int count, float lambda,
                            float tau, const NoiseKey& key, std::uint32_t first_group) {
  Floats e[4];
  four_log_exponentials(philox(key, first_group), e);
  const float inverse_lambda = 1.0f / lambda;
  const float inverse_tau = 1.0f / tau;
  Floats a[4];
  for (int j = 0; j < 4; ++j) a[j] = load(logits + j * groups, count) * inverse_lambda - e[j];
  TopTwo t;
  t.first = softmax_of_four(a, inverse_tau);
  for (int j = 0; j < 4; ++j) a[j] += log(t.first.rest[j]);
  t.second = softmax_of_four(a, inverse_tau);
  return t;
}

template <class Weight>
void topk_forward_row(const Weight* weight, const float* logits, std::int64_t groups, float lambda,
                      float tau, const NoiseKey& key, std::uint32_t first_group, Weight* masked) {
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    const TopTwo t = relax_top_two(logits + g, groups, count, lambda, tau, key,
                                   first_group + static_cast<std::uint32_t>(g));
    Quad w = load_quad(weight + 4 * g, count);
    for (int j = 0; j < 4; ++j) w.v[j] *= t.first.p[j] + t.second.p[j];
    store_quad(masked + 4 * g, w, count);
  }
}

template <class Weight>
void topk_backward_row(const Weight* weight, const float* logits, const Weight* gradient,
                       std::int64_t groups, float lambda, float tau, const NoiseKey& key,
                       std::uint32_t first_group, float regularisation, float* out) {
  const float inverse_tau = 1.0f / tau;
  const float inverse_lambda = 1.0f / lambda;
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    const TopTwo t = relax_top_two(logits + g, groups, count, lambda, tau, key,
                                   first_group + static_cast<std::uint32_t>(g));
    const Quad w = load_quad(weight + 4 * g, count);
    const Quad dw = load_quad(gradient + 4 * g, count);
    Floats keep_gradient[4];
    Floats mean{};
    for (int j = 0; j < 4; ++j) {
      const Floats keep = t.first.p[j] + t.second.p[j];
      keep_gradient[j] = w.v[j] * (dw.v[j] - (2.0f * regularisation) * (w.v[j] * keep));
      mean += t.second.p[j] * keep_gradient[j];
    }
    Floats second[4];  // dL / d(a2)
    Floats first[4];   // dL / d(mu1)
    Floats first_mean{};
    for (int j = 0; j < 4; ++j) {
      second[j] = t.second.p[j] * inverse_tau * (keep_gradient[j] - mean);
      first[j] = keep_gradient[j] - second[j] / t.first.rest[j];
      first_mean += t.first.p[j] * first[j];
    }
    for (int j = 0; j < 4; ++j) {
      float* plane = out + j * groups + g;
      const Floats slope = second[j] + t.first.p[j] * inverse_tau * (first[j] - first_mean);
      store(plane, load(plane, count) + slope * inverse_lambda, count);
    }
  }
}

}  // namespace
}  // namespace twofour::learning
