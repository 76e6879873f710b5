// Sampled dense-dense matrix product (SDDMM): some entries of gradient^T x alone, those of a
// layer's active groups. maskgen/learning/active_groups.py uses it in place of the whole product.
#pragma once

#include "common/bf16.h"
#include "kernels.h"

namespace twofour::learning {
namespace {

// 32 values of bf16 in an order of their own, the same for all operands.
struct Chunk {
  Floats first, second;
};

inline Chunk load_chunk(const std::uint16_t* from) {
  Words pairs;
  __builtin_memcpy(&pairs, from, sizeof pairs);
  return {first_of_pairs(pairs), second_of_pairs(pairs)};
}
inline Chunk load_chunk(const float* from) { return {load(from), load(from + lanes)}; }

// Columns [first, last) of (tokens, width), turned to (width, sddmm_tokens), zeros after the end.
template <class Value>
void turn(const Value* from, std::int64_t width, std::int64_t tokens, std::int64_t first,
          std::int64_t last, Value* to) {
  constexpr std::int64_t tile = 32;  // columns, so that what is written stays in the first cache
  for (std::int64_t begin = first; begin < last; begin += tile) {
    const std::int64_t end = begin + tile < last ? begin + tile : last;
    for (std::int64_t token = 0; token < tokens; ++token) {
      const Value* row = from + token * width;
      for (std::int64_t c = begin; c < end; ++c) to[c * sddmm_tokens + token] = row[c];
    }
    for (std::int64_t c = begin; c < end; ++c) {
      for (std::int64_t token = tokens; token < sddmm_tokens; ++token) {
        to[c * sddmm_tokens + token] = Value{};
      }
    }
  }
}

// Four products of one output's gradients with four inputs, over the tokens of a chunk.
template <class Value>
void add_products(const Value* gradient, const Value* inputs, float* sums) {
  Floats found[4] = {};
  for (int token = 0; token < sddmm_tokens; token += 2 * lanes) {
    const Chunk g = load_chunk(gradient + token);
    for (int j = 0; j < 4; ++j) {
      const Chunk x = load_chunk(inputs + j * sddmm_tokens + token);
      found[j] += g.first * x.first + g.second * x.second;
    }
  }
  for (int j = 0; j < 4; ++j) {
    float sum = 0.0f;
    for (int lane = 0; lane < lanes; ++lane) sum += found[j][lane];
    sums[j] += sum;
  }
}

template <class Value>
void sampled_products(const Sampled& all, float* out) {
  const auto* gradient = static_cast<const Value*>(all.gradient);
  const auto* inputs = static_cast<const Value*>(all.inputs);
  auto* turned_gradient = static_cast<Value*>(all.scratch);
  auto* turned_inputs = turned_gradient + all.rows * sddmm_tokens;
  const std::int64_t columns = all.groups * all.m;
  constexpr std::int64_t share = 64;  // columns or entries that a thread takes at once
#pragma omp parallel
  for (std::int64_t start = 0; start < all.tokens; start += sddmm_tokens) {
    const std::int64_t left = all.tokens - start;
    const std::int64_t tokens = left < sddmm_tokens ? left : sddmm_tokens;
#pragma omp for schedule(static) nowait
    for (std::int64_t c = 0; c < all.rows; c += share) {
      const std::int64_t end = c + share < all.rows ? c + share : all.rows;
      turn(gradient + start * all.rows, all.rows, tokens, c, end, turned_gradient);
    }
#pragma omp for schedule(static)
    for (std::int64_t c = 0; c < columns; c += share) {
      const std::int64_t end = c + share < columns ? c + share : columns;
      turn(inputs + start * columns, columns, tokens, c, end, turned_inputs);
    }
#pragma omp for schedule(static)
    for (std::int64_t k = 0; k < all.count; ++k) {
      const std::int64_t row = all.numbers[k] / all.groups, group = all.numbers[k] % all.groups;
      for (int j = 0; j < all.m; j += 4) {
        add_products(turned_gradient + row * sddmm_tokens,
                     turned_inputs + (group * all.m + j) * sddmm_tokens, out + k * all.m + j);
      }
    }
  }
}

}  // namespace
}  // namespace twofour::learning
