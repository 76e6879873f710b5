// The intrinsics of AVX-512 or, in a build for tests on machines without it, SIMDe's portable ones
// (https://github.com/simd-everywhere/simde) under the same names.
#pragma once

#ifndef TWOFOUR_EMULATED
#include <immintrin.h>
#else
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

// SIMDe 0.7 lacks these.
inline __m512i emulated_expand(std::uint64_t mask, __m512i values) {
  std::uint8_t from[64], to[64] = {};
  std::memcpy(from, &values, sizeof from);
  for (int i = 0, next = 0; i < 64; ++i) {
    if ((mask >> i) & 1u) to[i] = from[next++];
  }
  __m512i spread;
  std::memcpy(&spread, to, sizeof spread);
  return spread;
}
#undef _mm512_maskz_expand_epi8
#define _mm512_maskz_expand_epi8 emulated_expand
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#endif
