// Decoder operations for AVX-512 with the bf16 dot product.
#include <immintrin.h>

#include "ops_types.h"

namespace twofour::avx512_bf16 {
namespace {
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats dot_pairs(Floats acc, Words a, Words b) {
  __m512bh x, y;
  __builtin_memcpy(&x, &a, sizeof x);
  __builtin_memcpy(&y, &b, sizeof y);
  return _mm512_dpbf16_ps(acc, x, y);
}
}  // namespace
}  // namespace twofour::avx512_bf16

#define TWOFOUR_OPS_NAMESPACE avx512_bf16
#include "ops_impl.h"
