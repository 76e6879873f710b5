// Sixteen lanes of arithmetic in the compiler's own vector types (GCC and clang), which become
// AVX-512, AVX2 or plain SSE/NEON code depending on the flags of the file that includes this one.
// Everything is `static inline`: each instruction set must get its own copy (no ODR merging).
#pragma once

#include <cstdint>
#include <cstring>

namespace twofour::learning {
namespace {

constexpr int kLanes = 16;

using Float = float __attribute__((vector_size(64)));
using Int = std::int32_t __attribute__((vector_size(64)));
using Uint = std::uint32_t __attribute__((vector_size(64)));
using Wide = std::uint64_t __attribute__((vector_size(128)));

inline Float splat(float x) { return Float{} + x; }
inline Uint splat(std::uint32_t x) { return Uint{} + x; }
inline Int as_int(Float x) { return reinterpret_cast<Int>(x); }
inline Uint as_uint(Float x) { return reinterpret_cast<Uint>(x); }
inline Float as_float(Int x) { return reinterpret_cast<Float>(x); }
inline Float as_float(Uint x) { return reinterpret_cast<Float>(x); }
inline Float to_float(Uint x) {  // for x below 2^31, which converts in one instruction
  return __builtin_convertvector(reinterpret_cast<Int>(x), Float);
}
inline Float max(Float a, Float b) { return a > b ? a : b; }
inline Float min(Float a, Float b) { return a < b ? a : b; }

inline Float load(const float* p, int count) {
  Float v{};
  if (count == kLanes) {
    std::memcpy(&v, p, sizeof v);
  } else {
    std::memcpy(&v, p, sizeof(float) * static_cast<std::size_t>(count));
  }
  return v;
}

inline void store(float* p, Float v, int count) {
  if (count == kLanes) {
    std::memcpy(p, &v, sizeof v);
  } else {
    std::memcpy(p, &v, sizeof(float) * static_cast<std::size_t>(count));
  }
}

// Natural logarithm of a positive normal number: the Cephes polynomial, about 1 ulp.
inline Float log(Float x) {
  Int bits = as_int(x);
  Int exponent = (bits - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  const Float f = as_float(bits - (exponent << 23)) - 1.0f;
  const Float e = __builtin_convertvector(exponent, Float);
  Float p = splat(7.0376836292e-2f);
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Float f2 = f * f;
  Float y = p * f2 * f + e * -2.12194440e-4f;
  y = y - 0.5f * f2;
  return (f + y) + e * 0.693359375f;
}

// e^x for x <= 0 (what a softmax needs); below -87 it returns e^-87.
inline Float exp(Float x) {
  x = max(x, splat(-87.0f));
  const Float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to nearest
  const Float n = shifted - 12582912.0f;
  Float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Float p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Float y = p * (r * r) + r + 1.0f;
  return as_float(as_int(y) + (as_int(shifted) << 23));
}

// The four weights of 16 consecutive groups, one Float per position in the group.
struct Quad {
  Float v[4];
};

inline Quad load_quad(const std::uint16_t* p, int count) {  // bfloat16
  Wide groups{};
  if (count == kLanes) {
    std::memcpy(&groups, p, sizeof groups);
  } else {
    std::memcpy(&groups, p, 8 * static_cast<std::size_t>(count));
  }
  const Uint low = __builtin_convertvector(groups, Uint);
  const Uint high = __builtin_convertvector(groups >> 32, Uint);
  return {{as_float(low << 16), as_float(low & 0xffff0000u), as_float(high << 16),
           as_float(high & 0xffff0000u)}};
}

inline Quad load_quad(const float* p, int count) {
  float values[4][kLanes] = {};
  for (int lane = 0; lane < count; ++lane) {
    for (int j = 0; j < 4; ++j) values[j][lane] = p[4 * lane + j];
  }
  Quad q;
  std::memcpy(&q, values, sizeof q);
  return q;
}

inline Uint to_bfloat16(Float x) {  // round to nearest even, into the upper half
  const Uint bits = as_uint(x);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

inline void store_quad(std::uint16_t* p, const Quad& q, int count) {
  const Uint low = (to_bfloat16(q.v[0]) >> 16) | (to_bfloat16(q.v[1]) & 0xffff0000u);
  const Uint high = (to_bfloat16(q.v[2]) >> 16) | (to_bfloat16(q.v[3]) & 0xffff0000u);
  const Wide groups =
      __builtin_convertvector(low, Wide) | (__builtin_convertvector(high, Wide) << 32);
  if (count == kLanes) {
    std::memcpy(p, &groups, sizeof groups);
  } else {
    std::memcpy(p, &groups, 8 * static_cast<std::size_t>(count));
  }
}

inline void store_quad(float* p, const Quad& q, int count) {
  float values[4][kLanes];
  std::memcpy(values, &q, sizeof q);
  for (int lane = 0; lane < count; ++lane) {
    for (int j = 0; j < 4; ++j) p[4 * lane + j] = values[j][lane];
  }
}

}  // namespace
}  // namespace twofour::learning
