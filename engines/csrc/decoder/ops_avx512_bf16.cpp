// Decoder operations for AVX-512 with the bf16 dot product.
#include <immintrin.h>

#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct Bf16Lanes : WideLanes {
  static constexpr int attention_rows = 6, attention_vectors = 4;
  static Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats dot(Floats sums, Words pairs, Words pair) {
    __m512bh x, y;
    __builtin_memcpy(&x, &pairs, sizeof x);
    __builtin_memcpy(&y, &pair, sizeof y);
    return _mm512_dpbf16_ps(sums, x, y);
  }
};

}  // namespace

const DecoderOps& avx512_bf16_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<Bf16Lanes>();
  return table;
}

}  // namespace twofour
