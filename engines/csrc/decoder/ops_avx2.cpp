// Decoder operations for AVX2 with FMA.
#include <immintrin.h>

#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct Avx2Lanes {
  // GCC splits vectors of 64 bytes in two by itself, but fuses nothing by itself.
  static Floats fused(Floats a, Floats b, Floats c) {
    __m256 x[2], y[2], z[2];
    __builtin_memcpy(x, &a, sizeof x);
    __builtin_memcpy(y, &b, sizeof y);
    __builtin_memcpy(z, &c, sizeof z);
    z[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
    z[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
    __builtin_memcpy(&c, z, sizeof z);
    return c;
  }
  static Floats dot_pairs(Floats acc, Words a, Words b) {
    return dot_pairs_in_two<Avx2Lanes>(acc, a, b);
  }
};

}  // namespace

const DecoderOps& avx2_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<Avx2Lanes>();
  return table;
}

}  // namespace twofour
