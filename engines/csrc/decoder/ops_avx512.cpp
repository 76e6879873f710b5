// Decoder operations for AVX-512F.
#include <immintrin.h>

#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct Avx512Lanes : WideLanes {
  static constexpr int attention_rows = 6, attention_vectors = 4;
  static Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats dot(Floats sums, Words pairs, Words pair) {
    return dot_in_two<Avx512Lanes>(sums, pairs, pair);
  }
};

}  // namespace

const DecoderOps& avx512_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<Avx512Lanes>();
  return table;
}

}  // namespace twofour
