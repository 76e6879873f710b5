// Decoder operations for AVX-512F.
#include <immintrin.h>

#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct Avx512Lanes {
  static Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats dot_pairs(Floats acc, Words a, Words b) {
    return dot_pairs_in_two<Avx512Lanes>(acc, a, b);
  }
};

}  // namespace

const DecoderOps& avx512_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<Avx512Lanes>();
  return table;
}

}  // namespace twofour
