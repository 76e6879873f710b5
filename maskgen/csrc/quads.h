// The four weights of each of sixteen neighbouring groups, one vector per position in the group:
// from and to rows of weights, where a group's four lie side by side.
#pragma once

#include "common/bf16.h"

namespace twofour::learning {
namespace {

using Wide = std::uint64_t __attribute__((vector_size(128)));  // a group of bf16 is 64 bits

struct Quad {
  Floats v[4];
};

inline Quad load_quad(const std::uint16_t* from, int count) {  // bf16
  Wide groups{};
  if (count == lanes) {
    __builtin_memcpy(&groups, from, sizeof groups);
  } else {
    __builtin_memcpy(&groups, from, 8 * static_cast<std::size_t>(count));
  }
  // Narrowing to 32 bits takes a group apart into two words, each a pair of bf16.
  const Words low = __builtin_convertvector(groups, Words);
  const Words high = __builtin_convertvector(groups >> 32, Words);
  return {{first_of_pairs(low), second_of_pairs(low), first_of_pairs(high), second_of_pairs(high)}};
}

inline Quad load_quad(const float* from, int count) {
  float values[4][lanes] = {};
  for (int lane = 0; lane < count; ++lane) {
    for (int j = 0; j < 4; ++j) values[j][lane] = from[4 * lane + j];
  }
  Quad q;
  __builtin_memcpy(&q, values, sizeof q);
  return q;
}

inline void store_quad(std::uint16_t* to, const Quad& q, int count) {
  const Words low = (round_to_bf16(q.v[0]) >> 16) | (round_to_bf16(q.v[1]) & 0xffff0000u);
  const Words high = (round_to_bf16(q.v[2]) >> 16) | (round_to_bf16(q.v[3]) & 0xffff0000u);
  const Wide groups =
      __builtin_convertvector(low, Wide) | (__builtin_convertvector(high, Wide) << 32);
  if (count == lanes) {
    __builtin_memcpy(to, &groups, sizeof groups);
  } else {
    __builtin_memcpy(to, &groups, 8 * static_cast<std::size_t>(count));
  }
}

inline void store_quad(float* to, const Quad& q, int count) {
  float values[4][lanes];
  __builtin_memcpy(values, &q, sizeof q);
  for (int lane = 0; lane < count; ++lane) {
    for (int j = 0; j < 4; ++j) to[4 * lane + j] = values[j][lane];
  }
}

}  // namespace
}  // namespace twofour::learning
