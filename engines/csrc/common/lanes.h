// Sixteen lanes of 32 bits in the compiler's own vector types (GCC and clang), which become
// AVX-512, AVX2 or plain SSE or NEON code by the flags of the file that includes this one.
//
// The functions of this folder's headers are in an anonymous namespace and call nothing of the
// standard library: files built for different instruction sets must not share an inline function,
// since the linker keeps one copy of it, perhaps the one for a newer processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace twofour {

inline constexpr int lanes = 16;

using Floats = float __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));
using Words = std::uint32_t __attribute__((vector_size(64)));

namespace {

inline float as_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline std::uint32_t as_bits(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline Floats as_float(Words bits) { return reinterpret_cast<Floats>(bits); }
inline Floats as_float(Ints bits) { return reinterpret_cast<Floats>(bits); }
inline Words as_bits(Floats x) { return reinterpret_cast<Words>(x); }
inline Ints as_ints(Floats x) { return reinterpret_cast<Ints>(x); }

inline Floats splat(float x) { return Floats{} + x; }
inline Words splat(std::uint32_t x) { return Words{} + x; }

// 0, 1, ... 15.
inline Words lane_numbers() { return Words{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }

// Of values below 2^31: those convert in one instruction, as signed numbers.
inline Floats to_float(Words x) {
  return __builtin_convertvector(reinterpret_cast<Ints>(x), Floats);
}

inline Floats load(const float* from) {
  Floats x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float* to, Floats x) { __builtin_memcpy(to, &x, sizeof x); }

// The first `count` lanes, zero in the others. The whole width is a branch of its own, because a
// copy of known size is one instruction.
inline Floats load(const float* from, int count) {
  Floats x{};
  if (count == lanes) {
    __builtin_memcpy(&x, from, sizeof x);
  } else {
    __builtin_memcpy(&x, from, sizeof(float) * static_cast<std::size_t>(count));
  }
  return x;
}

inline void store(float* to, Floats x, int count) {
  if (count == lanes) {
    __builtin_memcpy(to, &x, sizeof x);
  } else {
    __builtin_memcpy(to, &x, sizeof(float) * static_cast<std::size_t>(count));
  }
}

}  // namespace
}  // namespace twofour
