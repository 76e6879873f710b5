// AVX2: products of bytes in pairs to 16 bits, those in pairs to 32.
#include "kernels/lowbit/ymm.h"

namespace twofour::lowbit {
namespace {

struct Avx2Dot {
  static __m256i dot(__m256i sum, __m256i magnitudes, __m256i activations) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitudes, activations);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static constexpr bool in_pairs = true;
  static constexpr KernelNames names = {
      "dense-int8-ymm-vpmaddubsw",    "dense-int4-ymm-vpmaddubsw",
      "sparse24-int8-ymm-vpmaddubsw", "sparse24-int4-ymm-vpmaddubsw",
      "bitmap32-int8-ymm-vpmaddubsw", "bitmap32-int4-ymm-vpmaddubsw"};
};

}  // namespace

const Kernels& avx2_kernels() {
  static const Kernels table = Driver<YmmOps<Avx2Dot>>::table();
  return table;
}

}  // namespace twofour::lowbit
