// Gumbel top-n of a group's m weights, relaxed by entropic optimal transport between the weights
// and the two places "kept" and "dropped" (SOFT top-k, arXiv 2002.06504), which for two places is
//   keep_j = sigmoid((a_j - theta) / tau),  a = logits / lambda + gumbel,  sum(keep) = n
// maskgen/learning/entropic_topk.py is the same function in torch.
#pragma once

#include "common/bf16.h"
#include "noise.h"

namespace twofour::learning {
namespace {

inline constexpr int most_weights = 32;  // of a group
// Newton's steps, between bounds that are halved where one leaves them.
inline constexpr int threshold_steps = 8;

inline Floats sigmoid(Floats x) {
  const Floats low = x > 87.0f ? splat(-87.0f) : -x;
  return 1.0f / (1.0f + exp_within_range<Cephes>(low > 87.0f ? splat(87.0f) : low));
}

// The perturbed scores of 16 groups over tau: (m, lane).
inline void perturbed_scores(const float* logits, std::int64_t groups, int count, Pattern pattern,
                             float lambda, float tau, const NoiseKey& key,
                             std::uint32_t first_group, Floats* scores) {
  const float inverse_lambda = 1.0f / lambda;
  const float inverse_tau = 1.0f / tau;
  for (int first = 0; first < pattern.m; first += 4) {
    NoiseKey call = key;  // as noise.py: the call is in the upper bits of the micro-batch
    call.micro_batch |= static_cast<std::uint32_t>(first / 4) << 24;
    Floats e[4];
    four_log_exponentials(philox(call, first_group), e);
    for (int j = 0; j < 4; ++j) {
      const Floats logit = load(logits + (first + j) * groups, count);
      scores[first + j] = (logit * inverse_lambda - e[j]) * inverse_tau;
    }
  }
}

// All ones where one of the n largest, the lowest index first among equals.
inline Ints is_kept(const Floats* scores, int j, Pattern pattern) {
  Ints beaten_by{};
  for (int i = 0; i < j; ++i) beaten_by -= scores[i] >= scores[j];
  for (int i = j + 1; i < pattern.m; ++i) beaten_by -= scores[i] > scores[j];
  return beaten_by < pattern.n;
}

// Turns scores into keeps. Midway between the n-th and the next, no kept one is below 1/2 and no
// dropped one above. From there theta is at most ln n below or ln (m - n) above: that far below,
// all kept ones together lack less than the best of the dropped has.
inline void entropic_top_n(Floats* scores, Pattern pattern) {
  Floats last = splat(3.0e38f), next = splat(-3.0e38f);
  for (int j = 0; j < pattern.m; ++j) {
    const Ints kept = is_kept(scores, j, pattern);
    const Floats score = scores[j];
    last = kept & (score < last) ? score : last;
    next = ~kept & (score > next) ? score : next;
  }
  Floats theta = 0.5f * last + 0.5f * next;
  const float n = static_cast<float>(pattern.n), rest = static_cast<float>(pattern.m) - n;
  Floats low = theta - log(splat(n)), high = theta + log(splat(rest));
  for (int step = 0; step < threshold_steps; ++step) {
    Floats total{}, slope{};
    for (int j = 0; j < pattern.m; ++j) {
      const Floats keep = sigmoid(scores[j] - theta);
      total += keep;
      slope += keep * (1.0f - keep);
    }
    const Floats excess = total - n;
    low = excess > 0.0f ? theta : low;
    high = excess > 0.0f ? high : theta;
    const Floats newton = theta + excess / max(slope, splat(1.0e-6f));
    // Not strictly: at the end it stays where it is, which is one of the bounds.
    theta = (newton >= low) & (newton <= high) ? newton : 0.5f * (low + high);
  }
  for (int j = 0; j < pattern.m; ++j) scores[j] = sigmoid(scores[j] - theta);
}

inline float weight_of(float x) { return x; }
inline float weight_of(std::uint16_t bf16) { return bf16_to_float(bf16); }

// The weights of `count` groups: (m, lane), zero in other lanes.
template <class Weight>
void load_groups(const Weight* from, int count, int m, Floats* to) {
  float values[most_weights][lanes] = {};
  for (int lane = 0; lane < count; ++lane) {
    for (int j = 0; j < m; ++j) values[j][lane] = weight_of(from[lane * m + j]);
  }
  __builtin_memcpy(to, values, static_cast<std::size_t>(m) * sizeof(Floats));
}

inline void store_weight(float* to, float x) { *to = x; }
inline void store_weight(std::uint16_t* to, float x) { *to = float_to_bf16(x); }

template <class Weight>
void store_groups(Weight* to, int count, int m, const Floats* from) {
  float values[most_weights][lanes];
  __builtin_memcpy(values, from, static_cast<std::size_t>(m) * sizeof(Floats));
  for (int lane = 0; lane < count; ++lane) {
    for (int j = 0; j < m; ++j) store_weight(to + lane * m + j, values[j][lane]);
  }
}

template <class Weight>
void entropic_forward_row(const Weight* weight, const float* logits, std::int64_t groups,
                          Pattern pattern, float lambda, float tau, const NoiseKey& key,
                          std::uint32_t first_group, Weight* masked) {
  const int m = pattern.m;
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    Floats keep[most_weights], w[most_weights];
    perturbed_scores(logits + g, groups, count, pattern, lambda, tau, key,
                     first_group + static_cast<std::uint32_t>(g), keep);
    entropic_top_n(keep, pattern);
    load_groups(weight + g * m, count, m, w);
    for (int j = 0; j < m; ++j) w[j] *= keep[j];
    store_groups(masked + g * m, count, m, w);
  }
}

// dL / da_j = s_j (g_j - <s, g> / sum(s)) with s = keep (1 - keep) / tau: theta moves with a.
template <class Weight>
void entropic_backward_row(const Weight* weight, const float* logits, const Weight* gradient,
                           std::int64_t groups, Pattern pattern, float lambda, float tau,
                           const NoiseKey& key, std::uint32_t first_group, float regularisation,
                           float* out) {
  const int m = pattern.m;
  const float rate = 1.0f / (lambda * tau);
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    Floats keep[most_weights], w[most_weights], dw[most_weights];
    perturbed_scores(logits + g, groups, count, pattern, lambda, tau, key,
                     first_group + static_cast<std::uint32_t>(g), keep);
    entropic_top_n(keep, pattern);
    load_groups(weight + g * m, count, m, w);
    load_groups(gradient + g * m, count, m, dw);
    Floats slopes{}, pull{};
    for (int j = 0; j < m; ++j) {
      dw[j] = w[j] * (dw[j] - (2.0f * regularisation) * (w[j] * keep[j]));
      keep[j] *= 1.0f - keep[j];
      slopes += keep[j];
      pull += keep[j] * dw[j];
    }
    const Floats mean = pull / max(slopes, splat(1.0e-30f));
    for (int j = 0; j < m; ++j) {
      float* plane = out + j * groups + g;
      store(plane, load(plane, count) + (rate * keep[j]) * (dw[j] - mean), count);
    }
  }
}

// 1 for the n largest of each group, the lowest index first among equals: (groups, m).
inline void keep_top_row(const float* logits, std::int64_t groups, Pattern pattern,
                         std::uint8_t* kept) {
  const int m = pattern.m;
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    Floats value[most_weights];
    for (int j = 0; j < m; ++j) value[j] = load(logits + j * groups + g, count);
    for (int j = 0; j < m; ++j) {
      const Ints chosen = is_kept(value, j, pattern);
      for (int lane = 0; lane < count; ++lane) kept[(g + lane) * m + j] = chosen[lane] != 0;
    }
  }
}

}  // namespace
}  // namespace twofour::learning
