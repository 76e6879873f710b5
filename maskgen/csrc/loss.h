// Next-token loss of one position and its gradient: maskgen/learning/loss.py says of what, and has
// the same function in torch.
#pragma once

#include "common/bf16.h"
#include "common/exp_log.h"
#include "kernels.h"

namespace twofour::learning {
namespace {

using Halves = std::uint16_t __attribute__((vector_size(32)));

inline Floats load_values(const float* from) { return load(from); }
inline Floats load_values(const std::uint16_t* from) {  // bf16
  Halves x;
  __builtin_memcpy(&x, from, sizeof x);
  return as_float(__builtin_convertvector(x, Words) << 16);
}
inline void store_values(float* to, Floats x) { store(to, x); }
inline void store_values(std::uint16_t* to, Floats x) {
  const Halves rounded = __builtin_convertvector(round_to_bf16(x) >> 16, Halves);
  __builtin_memcpy(to, &rounded, sizeof rounded);
}

// The last lanes of a row, `lowest` beyond its end: e^lowest is no part of a sum.
inline constexpr float lowest = -3.0e38f;
template <class Value>
Floats load_last(const Value* from, int count) {
  Value values[lanes] = {};
  for (int lane = 0; lane < count; ++lane) values[lane] = from[lane];
  return lane_numbers() < static_cast<std::uint32_t>(count) ? load_values(values) : splat(lowest);
}

template <class Value, class Use>
void for_lanes(const Value* row, std::int64_t size, Use use) {
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes) use(i, load_values(row + i));
  if (i < size) use(i, load_last(row + i, static_cast<int>(size - i)));
}

inline double sum_of(Floats x) {
  double sum = 0.0;
  for (int lane = 0; lane < lanes; ++lane) sum += static_cast<double>(x[lane]);
  return sum;
}

// Of one row of logits x: p = e^(x - top) / total.
struct Softmax {
  float top, total;

  Floats exponentials(Floats x) const { return exp_nonpositive<Cephes>(x - top); }
  // `log` takes normal numbers; logits that are none give no loss.
  float log_total() const { return total < 3.0e38f ? log(splat(total))[0] : __builtin_nanf(""); }
};

template <class Value>
Softmax softmax_of(const Value* row, std::int64_t size) {
  Floats tops = splat(lowest);
  for_lanes(row, size, [&](std::int64_t, Floats x) { tops = max(tops, x); });
  Softmax found{lowest, 0.0f};
  for (int lane = 0; lane < lanes; ++lane)
    found.top = tops[lane] > found.top ? tops[lane] : found.top;
  // Beyond the end of a row exp_nonpositive gives e^-87: nothing, in float.
  Floats totals{};
  for_lanes(row, size, [&](std::int64_t, Floats x) { totals += found.exponentials(x); });
  found.total = static_cast<float>(sum_of(totals));
  return found;
}

// sum q * (log q - log p)
template <class Value>
double divergence_of(const Value* row, const Softmax& p, const Value* teacher, const Softmax& q,
                     std::int64_t size) {
  Floats sum{};
  for_lanes(teacher, size, [&](std::int64_t i, Floats y) {
    const bool whole = i + lanes <= size;
    const Floats x = whole ? load_values(row + i) : load_last(row + i, static_cast<int>(size - i));
    sum += q.exponentials(y) * ((y - q.top) - (x - p.top));
  });
  const double of_logits = sum_of(sum) / static_cast<double>(q.total);
  return of_logits - static_cast<double>(q.log_total()) + static_cast<double>(p.log_total());
}

// scale * (p - share * q), and off the target scale * (1 - share).
template <class Value>
void write_gradient(const Value* row, const Softmax& p, const Value* teacher, const Softmax& q,
                    std::int64_t target, std::int64_t size, float share, float scale, Value* out) {
  const float own = scale / p.total;
  const float taught = teacher == nullptr ? 0.0f : scale * share / q.total;
  const auto slope = [&](Floats x, Floats y) {
    const Floats of_text = p.exponentials(x) * own;
    return teacher == nullptr ? of_text : of_text - q.exponentials(y) * taught;
  };
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    const Floats y = teacher == nullptr ? Floats{} : load_values(teacher + i);
    store_values(out + i, slope(load_values(row + i), y));
  }
  if (i < size) {
    const auto count = static_cast<int>(size - i);
    const Floats y = teacher == nullptr ? Floats{} : load_last(teacher + i, count);
    Value values[lanes];
    store_values(values, slope(load_last(row + i, count), y));
    for (int lane = 0; lane < count; ++lane) out[i + lane] = values[lane];
  }
  const std::int64_t first = target / lanes * lanes;  // before rounding, so anew
  const int count = size - first < lanes ? static_cast<int>(size - first) : lanes;
  const Floats y = teacher == nullptr ? Floats{} : load_last(teacher + first, count);
  Floats at_target = slope(load_last(row + first, count), y);
  at_target[target - first] -= scale * (1.0f - share);
  Value values[lanes];
  store_values(values, at_target);
  out[target] = values[target - first];
}

template <class Value>
void next_token_loss_row(const Predictions& all, std::int64_t position, float scale, Value* out,
                         double& text, double& divergence) {
  const std::int64_t size = all.vocabulary, target = all.targets[position];
  if (target < 0) {
    for (std::int64_t i = 0; out != nullptr && i < size; ++i) out[i] = Value{};
    return;
  }
  const Value* row = static_cast<const Value*>(all.logits) + position * size;
  const Value* teacher = static_cast<const Value*>(all.teacher);
  if (teacher != nullptr) teacher += position * size;
  const Softmax p = softmax_of(row, size);
  const Softmax q = teacher == nullptr ? Softmax{0.0f, 1.0f} : softmax_of(teacher, size);
  const std::int64_t first = target / lanes * lanes;
  const int count = size - first < lanes ? static_cast<int>(size - first) : lanes;
  const float predicted = load_last(row + first, count)[target - first] - p.top;
  text += static_cast<double>(p.log_total() - predicted);
  if (teacher != nullptr) divergence += divergence_of(row, p, teacher, q, size);
  if (out != nullptr) write_gradient(row, p, teacher, q, target, size, all.share, scale, out);
}

}  // namespace
}  // namespace twofour::learning
