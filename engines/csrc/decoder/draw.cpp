#include "decoder/draw.h"

#include <algorithm>
#include <array>
#include <vector>

namespace twofour {
namespace {

constexpr std::size_t block = 256;

// In an order that depends on n alone; several sums, so that none waits for the one before.
double sum_of(const float* x, std::size_t n) {
  std::array<double, 8> sums{};
  std::size_t i = 0;
  for (; i + sums.size() <= n; i += sums.size()) {
    for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += static_cast<double>(x[i + j]);
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(x[i]);
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

// The first place where the running sum of weights is above `uniform` of the whole.
std::size_t at_quantile(const std::vector<float>& weights, double uniform) {
  std::vector<double> sums;
  double total = 0.0;
  for (std::size_t start = 0; start < weights.size(); start += block) {
    sums.push_back(sum_of(&weights[start], std::min(block, weights.size() - start)));
    total += sums.back();
  }
  const double target = uniform * total;
  double before = 0.0;
  std::size_t last = 0;  // of positive weight: rounding can push the quantile past it
  for (std::size_t b = 0; b < sums.size(); ++b) {
    if (sums[b] > 0.0 && before + sums[b] > target) {
      double running = before;
      for (std::size_t i = b * block; i < std::min((b + 1) * block, weights.size()); ++i) {
        if (weights[i] > 0.0f) last = i;
        running += static_cast<double>(weights[i]);
        if (weights[i] > 0.0f && running > target) return i;
      }
      return last;  // the block's sum, in its own order, was a little more than the running one
    }
    before += sums[b];
  }
  for (std::size_t i = weights.size(); i-- > 0;) {
    if (weights[i] > 0.0f) return i;
  }
  return 0;
}

// Numbers of the likeliest tokens, the likeliest first: as many as `count`, or as reach `mass`.
// Few tokens hold nearly all probability, so that candidates are looked for among those first.
std::vector<std::size_t> likeliest(const std::vector<float>& weights, std::size_t count,
                                   double mass) {
  std::vector<std::size_t> found;
  for (const float cut : {1e-2f, 1e-4f, 1e-6f, 0.0f}) {
    found.clear();
    double sum = 0.0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] > cut) {
        found.push_back(i);
        sum += static_cast<double>(weights[i]);
      }
    }
    if (found.size() >= count || sum >= mass) break;
  }
  const auto before = [&](std::size_t a, std::size_t b) {
    return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
  };
  if (count < found.size()) {
    std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count), found.end(),
                     before);
    found.resize(count);
  }
  std::sort(found.begin(), found.end(), before);
  double reached = 0.0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    reached += static_cast<double>(weights[found[i]]);
    if (reached >= mass) found.resize(i + 1);
  }
  return found;
}

// Tokens in order of their number, each with its weight.
struct Left {
  std::vector<std::size_t> tokens;
  std::vector<float> weights;
};

Left only(std::vector<std::size_t> places, const std::vector<float>& weights, const Left* among) {
  std::sort(places.begin(), places.end());
  Left left;
  for (std::size_t place : places) {
    left.tokens.push_back(among ? among->tokens[place] : place);
    left.weights.push_back(weights[place]);
  }
  return left;
}

}  // namespace

std::size_t draw(const DecoderOps& ops, const float* logits, std::size_t n, const Filters& filters,
                 double uniform) {
  static thread_local std::vector<float> weights;  // fresh memory would cost more than the rest
  weights.resize(n);
  ops.weigh(logits, n, filters.temperature, weights.data());
  if (filters.min_p > 0.0f) {
    for (float& weight : weights) weight = weight < filters.min_p ? 0.0f : weight;
  }
  constexpr double no_mass = 1e300;
  Left left;
  bool some = false;
  if (filters.top_k > 0 && static_cast<std::size_t>(filters.top_k) < n) {
    const auto count = static_cast<std::size_t>(filters.top_k);
    left = only(likeliest(weights, count, no_mass), weights, nullptr);
    some = true;
  }
  if (filters.top_p < 1.0) {
    const std::vector<float>& all = some ? left.weights : weights;
    const double mass = filters.top_p * sum_of(all.data(), all.size());
    left = only(likeliest(all, all.size(), mass), all, some ? &left : nullptr);
    some = true;
  }
  return some ? left.tokens[at_quantile(left.weights, uniform)] : at_quantile(weights, uniform);
}

}  // namespace twofour
