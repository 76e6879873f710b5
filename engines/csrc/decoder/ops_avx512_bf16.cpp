// Decoder operations for AVX-512 with the bf16 dot product.
#include <immintrin.h>

#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct Bf16Lanes {
  static Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats dot_pairs(Floats acc, Words a, Words b) {
    __m512bh x, y;
    __builtin_memcpy(&x, &a, sizeof x);
    __builtin_memcpy(&y, &b, sizeof y);
    return _mm512_dpbf16_ps(acc, x, y);
  }
};

}  // namespace

const DecoderOps& avx512_bf16_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<Bf16Lanes>();
  return table;
}

}  // namespace twofour
