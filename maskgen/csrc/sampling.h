// MaskPro's sampling (arXiv 2506.12876): two of four without replacement from softmax(logits),
// drawn as the top two of logits + gumbel (the same distribution), and the gradient of its
// log-probability.
//   log p({i, j}) = log p_i + log p_j + log(1 / (1 - p_i) + 1 / (1 - p_j))
#pragma once

#include "noise.h"
#include "quads.h"

namespace twofour::learning {
namespace {

struct Keep {
  Ints kept[4];  // all ones where kept
};

// The two largest of four; the lowest index wins a tie.
inline Keep top_two(const Floats score[4]) {
  Keep k;
  for (int j = 0; j < 4; ++j) {
    Ints beaten_by{};
    for (int i = 0; i < 4; ++i) {
      if (i == j) continue;
      const Ints wins = i < j ? score[i] >= score[j] : score[i] > score[j];
      beaten_by -= wins;
    }
    k.kept[j] = beaten_by < 2;
  }
  return k;
}

inline Keep sample_two(const Floats logits[4], const NoiseKey& key, std::uint32_t first_group) {
  Floats score[4];
  four_log_exponentials(philox(key, first_group), score);
  for (int j = 0; j < 4; ++j) score[j] = logits[j] - score[j];
  return top_two(score);
}

template <class Weight>
void sample_forward_row(const Weight* weight, const float* logits, std::int64_t groups,
                        const NoiseKey& key, std::uint32_t first_group, Weight* masked) {
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    Floats value[4];
    for (int j = 0; j < 4; ++j) value[j] = load(logits + g + j * groups, count);
    const Keep k = sample_two(value, key, first_group + static_cast<std::uint32_t>(g));
    Quad w = load_quad(weight + 4 * g, count);
    for (int j = 0; j < 4; ++j) w.v[j] = as_float(as_ints(w.v[j]) & k.kept[j]);
    store_quad(masked + 4 * g, w, count);
  }
}

inline void sample_update_row(float* logits, std::int64_t groups, const NoiseKey& key,
                              std::uint32_t first_group, float rate) {
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    Floats value[4];
    for (int j = 0; j < 4; ++j) value[j] = load(logits + g + j * groups, count);
    const Keep k = sample_two(value, key, first_group + static_cast<std::uint32_t>(g));
    const Floats top = max(max(value[0], value[1]), max(value[2], value[3]));
    Floats p[4];
    for (int j = 0; j < 4; ++j) p[j] = exp_nonpositive<Cephes>(value[j] - top);
    const Floats scale = 1.0f / ((p[0] + p[1]) + (p[2] + p[3]));
    Floats rest[4];
    for (int j = 0; j < 4; ++j) {
      rest[j] = scale * ((p[(j + 1) % 4] + p[(j + 2) % 4]) + p[(j + 3) % 4]);
      rest[j] = max(rest[j], splat(1.0e-12f));
    }
    for (int j = 0; j < 4; ++j) p[j] *= scale;
    // p * d(log p(sample)) / dp = [kept] * (1 + p / (1 - p)^2 / sum over kept of 1 / (1 - p))
    Floats kept_sum{};
    for (int j = 0; j < 4; ++j) kept_sum += k.kept[j] ? 1.0f / rest[j] : Floats{};
    Floats pull[4];
    Floats total{};
    for (int j = 0; j < 4; ++j) {
      const Floats odds = (p[j] / rest[j]) / (rest[j] * kept_sum);
      pull[j] = k.kept[j] ? 1.0f + odds : Floats{};
      total += pull[j];
    }
    for (int j = 0; j < 4; ++j) {
      store(logits + g + j * groups, value[j] + rate * (pull[j] - p[j] * total), count);
    }
  }
}

// The kept pair's code, how many differ from `compare`, and the sum over groups of the probability
// that softmax(logits / lambda) puts on the kept two.
inline void decide_weights_row(const float* logits, std::int64_t groups, float lambda,
                               std::uint8_t* codes, const std::uint8_t* compare,
                               std::int64_t& changed, double& sharpness) {
  const float inverse_lambda = 1.0f / lambda;
  for (std::int64_t g = 0; g < groups; g += lanes) {
    const int count = groups - g < lanes ? static_cast<int>(groups - g) : lanes;
    Floats value[4];
    for (int j = 0; j < 4; ++j) value[j] = load(logits + g + j * groups, count);
    const Keep k = top_two(value);
    const Floats top = max(max(value[0], value[1]), max(value[2], value[3]));
    Floats kept{};
    Floats total{};
    for (int j = 0; j < 4; ++j) {
      const Floats p = exp_nonpositive<Cephes>((value[j] - top) * inverse_lambda);
      total += p;
      kept += k.kept[j] ? p : Floats{};
    }
    const Floats sharp = kept / total;
    // first kept position i, second j: codes 0-2 are (0, j), 3-4 are (1, j), 5 is (2, 3)
    const Ints code = k.kept[0] ? (k.kept[1] ? Ints{} : (k.kept[2] ? Ints{} + 1 : Ints{} + 2))
                                : (k.kept[1] ? (k.kept[2] ? Ints{} + 3 : Ints{} + 4) : Ints{} + 5);
    for (int lane = 0; lane < count; ++lane) {
      codes[g + lane] = static_cast<std::uint8_t>(code[lane]);
      sharpness += static_cast<double>(sharp[lane]);
      changed += compare[g + lane] != codes[g + lane];
    }
  }
}

}  // namespace
}  // namespace twofour::learning
