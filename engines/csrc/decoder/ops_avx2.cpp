// Decoder operations for AVX2 with FMA.
#include <immintrin.h>

#include "ops_types.h"

namespace twofour::avx2 {
namespace {
inline Floats fused(Floats a, Floats b, Floats c) {
  __m256 x[2], y[2], z[2];
  __builtin_memcpy(x, &a, sizeof x);
  __builtin_memcpy(y, &b, sizeof y);
  __builtin_memcpy(z, &c, sizeof z);
  z[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
  z[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
  __builtin_memcpy(&c, z, sizeof z);
  return c;
}
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
}  // namespace twofour::avx2

#define TWOFOUR_OPS_NAMESPACE avx2
#include "ops_impl.h"
