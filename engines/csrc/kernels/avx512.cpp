// AVX-512 without BF16: weights become fp32 by a shift or a mask, activations are prepared as fp32
// (rounded to bf16 first), and a pair costs two permutes and two fused multiply-adds.
#include <immintrin.h>

#include "kernels/driver.h"
#include "kernels/positions.h"
#include "kernels/prefetch.h"
#include "kernels/tables.h"

namespace twofour {
namespace {

constexpr Positions positions = make_positions(16, 4);  // vpermps looks at 4 bits of each index

struct Avx512Ops {
  using Activation = float;
  static constexpr std::size_t max_tokens = 8;
  static constexpr Source shared_source = Source::codes;

  // The two bf16 of each word as floats: a bf16 is the upper half of a float, whose lower half is
  // zero.
  static __m512 low(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static __m512 high(__m512i pairs) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  template <Source S, int R, int T>
  static void block(const Part<R>& part, const Activation* x, std::size_t tiles, float* acc) {
    constexpr Layout L = layout_of(S);
    __m512 sum[R][T];
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) sum[r][t] = _mm512_loadu_ps(acc + (r * T + t) * 16);
    }
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      const Activation* in = x + tile * T * tile_inputs;
      const std::size_t offset = tile * tile_bytes(L);
      prefetch_tile<L, R>(part, tile, tiles);
      if constexpr (L == Layout::sparse24_bf16) {
        sparse_tile<R, T>(part.w, offset, in, sum);
      } else {
        dense_tile<R, T>(part.w, offset, in, sum);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) _mm512_storeu_ps(acc + (r * T + t) * 16, sum[r][t]);
    }
  }

  template <int R, int T>
  static inline __attribute__((always_inline)) void sparse_tile(const std::byte* const* w,
                                                                std::size_t offset,
                                                                const Activation* in,
                                                                __m512 (&sum)[R][T]) {
    __m512i codes[R];
    for (int r = 0; r < R; ++r) codes[r] = _mm512_loadu_si512(w[r] + offset);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      // vpermd looks each row's code up among the six entries; it reads four bits of an index, so
      // the group's nibble needs no mask, only to be the lowest. What it finds holds the two places
      // four bits apart, and is itself an index for vpermps as it is and shifted once.
      const __m512i table = _mm512_load_si512(positions.entry[g]);
      for (int r = 0; r < R; ++r) {
        const __m512i first = _mm512_permutexvar_epi32(
            _mm512_srli_epi32(codes[r], static_cast<unsigned>(4 * g)), table);
        const __m512i second = _mm512_srli_epi32(first, 4);
        const __m512i pairs = _mm512_loadu_si512(w[r] + offset + 64 + 64 * g);
        const __m512 left = low(pairs), right = high(pairs);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512 inputs = _mm512_loadu_ps(in + 32 * t + 16 * (g / 4));
          sum[r][t] = _mm512_fmadd_ps(left, _mm512_permutexvar_ps(first, inputs), sum[r][t]);
          sum[r][t] = _mm512_fmadd_ps(right, _mm512_permutexvar_ps(second, inputs), sum[r][t]);
        }
      }
    }
  }

  template <int R, int T>
  static inline __attribute__((always_inline)) void dense_tile(const std::byte* const* w,
                                                               std::size_t offset,
                                                               const Activation* in,
                                                               __m512 (&sum)[R][T]) {
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
      __m512 left[R], right[R];
      for (int r = 0; r < R; ++r) {
        const __m512i pairs = _mm512_loadu_si512(w[r] + offset + 64 * p);
        left[r] = low(pairs);
        right[r] = high(pairs);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 first = _mm512_set1_ps(in[32 * t + 2 * p]);
        const __m512 second = _mm512_set1_ps(in[32 * t + 2 * p + 1]);
        for (int r = 0; r < R; ++r) sum[r][t] = _mm512_fmadd_ps(left[r], first, sum[r][t]);
        for (int r = 0; r < R; ++r) sum[r][t] = _mm512_fmadd_ps(right[r], second, sum[r][t]);
      }
    }
  }

  // Four changed groups at a time.
  static float patch_row(const std::uint32_t* group, const std::uint16_t* delta, std::size_t length,
                         const Activation* x, std::size_t tile_stride) {
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t i = 0; i < length; i += 4) {
      __m512 inputs = _mm512_setzero_ps();
      const std::size_t left = smaller(4, length - i);
      alignas(64) float buffer[16] = {};
      for (std::size_t j = 0; j < left; ++j) {
        const float* from =
            x + (group[i + j] / tile_groups) * tile_stride + 4 * (group[i + j] % tile_groups);
        _mm_store_ps(buffer + 4 * j, _mm_loadu_ps(from));
      }
      inputs = _mm512_load_ps(buffer);
      const __mmask16 mask = static_cast<__mmask16>((1u << (4 * left)) - 1u);
      const __m256i change = _mm256_maskz_loadu_epi16(mask, delta + 4 * i);
      const __m512 values =
          _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(change), 16));
      sum = _mm512_fmadd_ps(values, inputs, sum);
    }
    return _mm512_reduce_add_ps(sum);
  }

  static std::uint64_t read(const std::byte* data, std::size_t bytes) {
    __m512i a = _mm512_setzero_si512(), b = a;
    for (std::size_t i = 0; i + 128 <= bytes; i += 128) {
      _mm_prefetch(reinterpret_cast<const char*>(data + i + prefetch_bytes), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(data + i + prefetch_bytes + 64), _MM_HINT_T0);
      a = _mm512_xor_si512(a, _mm512_loadu_si512(data + i));
      b = _mm512_xor_si512(b, _mm512_loadu_si512(data + i + 64));
    }
    return static_cast<std::uint64_t>(_mm512_reduce_add_epi64(_mm512_xor_si512(a, b)));
  }

  static const char* kernel_name(Layout layout, std::size_t) {
    return layout == Layout::sparse24_bf16 ? "sparse24-zmm-vpermps" : "dense-zmm-fma";
  }
};

}  // namespace

const Kernels& avx512_kernels() {
  static const Kernels table = Driver<Avx512Ops>::table();
  return table;
}

}  // namespace twofour
