// Decoder operations for AVX-512F.
#include <immintrin.h>

#include "ops_types.h"

namespace twofour::avx512 {
namespace {
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats as_floats(Words bits) {
  Floats v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
inline Floats dot_pairs(Floats acc, Words a, Words b) {
  const Words high = Words{} + 0xffff0000u;
  acc = fused(as_floats(a << 16), as_floats(b << 16), acc);
  return fused(as_floats(a & high), as_floats(b & high), acc);
}
}  // namespace
}  // namespace twofour::avx512

#define TWOFOUR_OPS_NAMESPACE avx512
#include "ops_impl.h"
