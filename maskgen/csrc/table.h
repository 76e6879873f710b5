// Rows to threads, and the table of kernels. Included by one file per instruction set.
#pragma once

#include "entropic.h"
#include "grid.h"
#include "gumbel.h"
#include "loss.h"
#include "norm.h"
#include "order.h"
#include "sampling.h"
#include "sddmm.h"
#include "topk.h"

namespace twofour::learning {
namespace {

inline std::uint32_t first_group_of(const Layer& layer, std::int64_t row) {
  return static_cast<std::uint32_t>(row * layer.groups);
}

template <int planes>
const float* logits_of(const Layer& layer, std::int64_t row) {
  return layer.logits + row * planes * layer.groups;
}

template <class Weight>
void gumbel_forward(const Layer& layer, float kappa, float tau, const NoiseKey& key, void* masked) {
  const auto* weight = static_cast<const Weight*>(layer.weight);
  auto* out = static_cast<Weight*>(masked);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * 4 * layer.groups;
    gumbel_forward_row(weight + at, logits_of<6>(layer, row), layer.groups, kappa, tau, key,
                       first_group_of(layer, row), out + at);
  }
}

template <class Weight>
void gumbel_backward(const Layer& layer, float kappa, float tau, const NoiseKey& key,
                     const Gradient& gradient) {
  const auto* weight = static_cast<const Weight*>(layer.weight);
  const auto* dw = static_cast<const Weight*>(gradient.masked_weight);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * 4 * layer.groups;
    gumbel_backward_row(weight + at, logits_of<6>(layer, row), dw + at, layer.groups, kappa, tau,
                        key, first_group_of(layer, row), gradient.regularisation,
                        gradient.logits + row * 6 * layer.groups);
  }
}

template <class Weight>
void topk_forward(const Layer& layer, float lambda, float tau, const NoiseKey& key, void* masked) {
  const auto* weight = static_cast<const Weight*>(layer.weight);
  auto* out = static_cast<Weight*>(masked);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * 4 * layer.groups;
    topk_forward_row(weight + at, logits_of<4>(layer, row), layer.groups, lambda, tau, key,
                     first_group_of(layer, row), out + at);
  }
}

template <class Weight>
void topk_backward(const Layer& layer, float lambda, float tau, const NoiseKey& key,
                   const Gradient& gradient) {
  const auto* weight = static_cast<const Weight*>(layer.weight);
  const auto* dw = static_cast<const Weight*>(gradient.masked_weight);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * 4 * layer.groups;
    topk_backward_row(weight + at, logits_of<4>(layer, row), dw + at, layer.groups, lambda, tau,
                      key, first_group_of(layer, row), gradient.regularisation,
                      gradient.logits + at);
  }
}

template <class Weight>
void entropic_forward(const Layer& layer, Pattern pattern, float lambda, float tau,
                      const NoiseKey& key, void* masked) {
  const auto* weight = static_cast<const Weight*>(layer.weight);
  auto* out = static_cast<Weight*>(masked);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * pattern.m * layer.groups;
    entropic_forward_row(weight + at, layer.logits + at, layer.groups, pattern, lambda, tau, key,
                         first_group_of(layer, row), out + at);
  }
}

template <class Weight>
void entropic_backward(const Layer& layer, Pattern pattern, float lambda, float tau,
                       const NoiseKey& key, const Gradient& gradient) {
  const auto* weight = static_cast<const Weight*>(layer.weight);
  const auto* dw = static_cast<const Weight*>(gradient.masked_weight);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * pattern.m * layer.groups;
    entropic_backward_row(weight + at, layer.logits + at, dw + at, layer.groups, pattern, lambda,
                          tau, key, first_group_of(layer, row), gradient.regularisation,
                          gradient.logits + at);
  }
}

inline void keep_top(const Layer& layer, Pattern pattern, std::uint8_t* kept) {
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * pattern.m * layer.groups;
    keep_top_row(layer.logits + at, layer.groups, pattern, kept + at);
  }
}

template <class Weight>
void sample_forward(const Layer& layer, const NoiseKey& key, void* masked) {
  const auto* weight = static_cast<const Weight*>(layer.weight);
  auto* out = static_cast<Weight*>(masked);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * 4 * layer.groups;
    sample_forward_row(weight + at, logits_of<4>(layer, row), layer.groups, key,
                       first_group_of(layer, row), out + at);
  }
}

inline void sample_update(const Layer& layer, const NoiseKey& key, float rate, float* logits) {
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    sample_update_row(logits + row * 4 * layer.groups, layer.groups, key,
                      first_group_of(layer, row), rate);
  }
}

inline void decide_placements(const Layer& layer, float kappa, Decision& decision) {
  std::int64_t changed = 0;
  double sharpness = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : changed, sharpness)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * layer.groups;
    decide_placements_row(logits_of<6>(layer, row), layer.groups, kappa, decision.codes + at,
                          decision.compare + at, changed, sharpness);
  }
  decision.changed = changed;
  decision.sharpness = sharpness;
}

inline void decide_weights(const Layer& layer, float lambda, Decision& decision) {
  std::int64_t changed = 0;
  double sharpness = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : changed, sharpness)
  for (std::int64_t row = 0; row < layer.rows; ++row) {
    const std::int64_t at = row * layer.groups;
    decide_weights_row(logits_of<4>(layer, row), layer.groups, lambda, decision.codes + at,
                       decision.compare + at, changed, sharpness);
  }
  decision.changed = changed;
  decision.sharpness = sharpness;
}

inline void fake_quantise(const float* weight, const std::uint8_t* keep, std::int64_t rows,
                          std::int64_t columns, Grid grid, float* out) {
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t at = row * columns;
    fake_quantise_row(weight + at, keep + at, columns, grid, out + at);
  }
}

inline void order_gradient(const Blocks& blocks, Pattern pattern, float* found) {
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    order_gradient_block(blocks, block, pattern, found + block * blocks.size * blocks.size);
  }
}

template <class Value>
Losses next_token_loss(const Predictions& all, float scale, void* gradient) {
  auto* out = static_cast<Value*>(gradient);
  double text = 0.0, divergence = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : text, divergence)
  for (std::int64_t position = 0; position < all.positions; ++position) {
    Value* own = out == nullptr ? nullptr : out + position * all.vocabulary;
    next_token_loss_row<Value>(all, position, scale, own, text, divergence);
  }
  return {text, divergence};
}

template <class Value>
void rms_norm(const Norm& norm, float epsilon, void* out, float* scales) {
  const auto* x = static_cast<const Value*>(norm.x);
  const auto* weight = static_cast<const Value*>(norm.weight);
  auto* y = static_cast<Value*>(out);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < norm.rows; ++row) {
    const std::int64_t at = row * norm.size;
    scales[row] = rms_norm_row(x + at, weight, norm.size, epsilon, y + at);
  }
}

template <class Value>
void rms_norm_gradient(const Norm& norm, const float* scales, const void* gradient, void* out) {
  const auto* x = static_cast<const Value*>(norm.x);
  const auto* weight = static_cast<const Value*>(norm.weight);
  const auto* dy = static_cast<const Value*>(gradient);
  auto* dx = static_cast<Value*>(out);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < norm.rows; ++row) {
    const std::int64_t at = row * norm.size;
    rms_norm_gradient_row(x + at, weight, dy + at, norm.size, scales[row], dx + at);
  }
}

inline Kernels make_table(const char* name) {
  using Bf16 = std::uint16_t;
  return {
      name,
      [](const Layer& l, float a, float b, const NoiseKey& k, void* out) {
        l.is_bf16 ? gumbel_forward<Bf16>(l, a, b, k, out) : gumbel_forward<float>(l, a, b, k, out);
      },
      [](const Layer& l, float a, float b, const NoiseKey& k, const Gradient& g) {
        l.is_bf16 ? gumbel_backward<Bf16>(l, a, b, k, g) : gumbel_backward<float>(l, a, b, k, g);
      },
      [](const Layer& l, float a, float b, const NoiseKey& k, void* out) {
        l.is_bf16 ? topk_forward<Bf16>(l, a, b, k, out) : topk_forward<float>(l, a, b, k, out);
      },
      [](const Layer& l, float a, float b, const NoiseKey& k, const Gradient& g) {
        l.is_bf16 ? topk_backward<Bf16>(l, a, b, k, g) : topk_backward<float>(l, a, b, k, g);
      },
      [](const Layer& l, Pattern p, float a, float b, const NoiseKey& k, void* out) {
        l.is_bf16 ? entropic_forward<Bf16>(l, p, a, b, k, out)
                  : entropic_forward<float>(l, p, a, b, k, out);
      },
      [](const Layer& l, Pattern p, float a, float b, const NoiseKey& k, const Gradient& g) {
        l.is_bf16 ? entropic_backward<Bf16>(l, p, a, b, k, g)
                  : entropic_backward<float>(l, p, a, b, k, g);
      },
      keep_top,
      [](const Layer& l, const NoiseKey& k, void* out) {
        l.is_bf16 ? sample_forward<Bf16>(l, k, out) : sample_forward<float>(l, k, out);
      },
      sample_update,
      decide_placements,
      decide_weights,
      fake_quantise,
      order_gradient,
      [](const Norm& n, float epsilon, void* out, float* scales) {
        n.is_bf16 ? rms_norm<Bf16>(n, epsilon, out, scales)
                  : rms_norm<float>(n, epsilon, out, scales);
      },
      [](const Norm& n, const float* scales, const void* gradient, void* out) {
        n.is_bf16 ? rms_norm_gradient<Bf16>(n, scales, gradient, out)
                  : rms_norm_gradient<float>(n, scales, gradient, out);
      },
      [](const Sampled& s, float* out) {
        s.is_bf16 ? sampled_products<Bf16>(s, out) : sampled_products<float>(s, out);
      },
      [](const Predictions& p, float scale, void* out) {
        return p.is_bf16 ? next_token_loss<Bf16>(p, scale, out)
                         : next_token_loss<float>(p, scale, out);
      }};
}

}  // namespace
}  // namespace twofour::learning
