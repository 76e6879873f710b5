// AVX-512 with BF16: vdpbf16ps multiplies 16 rows' pairs of weights with 16 pairs of inputs.
//
// Sparse: the codes of a group become, through a 16-entry table (vpermd), the positions of each
// row's two kept inputs among the tile's 32; vpermw fetches those pairs from the one register that
// holds the tile's inputs. So activations need no preparation beyond their order, and the
// positions, which do not depend on the token, are shared by all tokens of a panel.
#include <immintrin.h>

#include "kernels/driver.h"
#include "kernels/positions.h"
#include "kernels/prefetch.h"
#include "kernels/tables.h"

namespace twofour {
namespace {

// One 16-bit index for each of vpermw's lanes.
constexpr Positions positions = make_positions(32, 16);

struct Bf16Ops {
  using Activation = std::uint16_t;
  // 2 row blocks x 8 tokens: 16 sums and 8 inputs of 32 registers. Six cycles of latency at two
  // products a cycle need 12 sums; more tokens would push the inputs out of the registers.
  static constexpr std::size_t max_tokens = 8;
  static constexpr Source shared_source = Source::places;
  static __m512bh pairs(__m512i v) { return reinterpret_cast<__m512bh>(v); }

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
      if constexpr (S == Source::dense) {
        dense_tile<R, T>(part.w, offset, in, sum);
      } else {
        const std::byte* places[R];
        for (int r = 0; r < R; ++r) {
          places[r] = S == Source::places ? part.places[r] + tile * expanded_tile_bytes(S)
                                          : part.w[r] + offset;
        }
        sparse_tile<S, R, T>(part.w, offset, places, in, sum);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) _mm512_storeu_ps(acc + (r * T + t) * 16, sum[r][t]);
    }
  }

  // Positions of the kept inputs of group g, for 16 rows: 16-bit indices, as vpermw takes them.
  // vpermd reads four bits of an index, so the group's nibble needs no mask, only to be the lowest.
  static __m512i positions_of(__m512i codes, int g) {
    return _mm512_permutexvar_epi32(_mm512_srli_epi32(codes, static_cast<unsigned>(4 * g)),
                                    _mm512_load_si512(positions.entry[g]));
  }

  static void expand(const std::byte* w, std::size_t tiles, std::byte* to) {
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      const __m512i codes = _mm512_loadu_si512(w + tile * sparse_tile_bytes);
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        _mm512_store_si512(to + tile * expanded_tile_bytes(Source::places) + 64 * g,
                           positions_of(codes, g));
      }
    }
  }

  // places[r]: the tile's codes or its positions.
  template <Source S, int R, int T>
  static inline __attribute__((always_inline)) void sparse_tile(const std::byte* const* w,
                                                                std::size_t offset,
                                                                const std::byte* const* places,
                                                                const Activation* in,
                                                                __m512 (&sum)[R][T]) {
    __m512i codes[R];
    if constexpr (S == Source::codes) {
      for (int r = 0; r < R; ++r) codes[r] = _mm512_loadu_si512(places[r]);
    }
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      for (int r = 0; r < R; ++r) {
        __m512i where;
        if constexpr (S == Source::codes) {
          where = positions_of(codes[r], g);
        } else {
          where = _mm512_load_si512(places[r] + 64 * g);
        }
        const __m512i values = _mm512_loadu_si512(w[r] + offset + 64 + 64 * g);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512i inputs = _mm512_loadu_si512(in + 32 * t);
          sum[r][t] = _mm512_dpbf16_ps(sum[r][t], pairs(values),
                                       pairs(_mm512_permutexvar_epi16(where, inputs)));
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
      __m512i values[R];
      for (int r = 0; r < R; ++r) values[r] = _mm512_loadu_si512(w[r] + offset + 64 * p);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        int pair;
        __builtin_memcpy(&pair, in + 32 * t + 2 * p, 4);
        const __m512i inputs = _mm512_set1_epi32(pair);
        for (int r = 0; r < R; ++r) {
          sum[r][t] = _mm512_dpbf16_ps(sum[r][t], pairs(values[r]), pairs(inputs));
        }
      }
    }
  }

  // Eight changed groups at a time: their four inputs are one 64-bit gather each.
  static float patch_row(const std::uint32_t* group, const std::uint16_t* delta, std::size_t length,
                         const Activation* x, std::size_t tile_stride) {
    const __m256i stride = _mm256_set1_epi32(static_cast<int>(2 * tile_stride));
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t i = 0; i < length; i += 8) {
      const unsigned left = static_cast<unsigned>(smaller(8, length - i));
      const __mmask8 mask = static_cast<__mmask8>((1u << left) - 1u);
      const __m256i index = _mm256_maskz_loadu_epi32(mask, group + i);
      const __m256i place =
          _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32(index, 3), stride),
                           _mm256_slli_epi32(_mm256_and_si256(index, _mm256_set1_epi32(7)), 3));
      const __m512i inputs = _mm512_mask_i32gather_epi64(_mm512_setzero_si512(), mask, place, x, 1);
      const __m512i change = _mm512_maskz_loadu_epi64(mask, delta + 4 * i);
      sum = _mm512_dpbf16_ps(sum, pairs(change), pairs(inputs));
    }
    return _mm512_reduce_add_ps(sum);
  }

  static std::uint64_t read(const std::byte* data, std::size_t bytes) {
    __m512i sum[8];
    for (__m512i& part : sum) part = _mm512_setzero_si512();
    for (std::size_t i = 0; i + 512 <= bytes; i += 512) {
      for (std::size_t j = 0; j < 8; ++j) {
        _mm_prefetch(reinterpret_cast<const char*>(data + i + 64 * j + prefetch_bytes),
                     _MM_HINT_T0);
      }
      for (std::size_t j = 0; j < 8; ++j) {
        sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(data + i + 64 * j));
      }
    }
    for (std::size_t j = 1; j < 8; ++j) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
    return static_cast<std::uint64_t>(_mm512_reduce_add_epi64(sum[0]));
  }

  static const char* kernel_name(Layout layout, std::size_t) {
    return layout == Layout::sparse24_bf16 ? "sparse24-zmm-vpermw-vdpbf16ps"
                                           : "dense-zmm-vdpbf16ps";
  }
};

}  // namespace

const Kernels& avx512_bf16_kernels() {
  static const Kernels table = Driver<Bf16Ops>::table();
  return table;
}

}  // namespace twofour
