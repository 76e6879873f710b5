// AVX2 with AVX-VNNI: `vpdpbusd` adds four products of bytes in one instruction.
#include "kernels/lowbit/ymm.h"

namespace twofour::lowbit {
namespace {

struct VnniDot {
  static __m256i dot(__m256i sum, __m256i magnitudes, __m256i activations) {
    return _mm256_dpbusd_avx_epi32(sum, magnitudes, activations);
  }
  static constexpr bool in_pairs = false;
  static constexpr KernelNames names = {"dense-int8-ymm-vpdpbusd",    "dense-int4-ymm-vpdpbusd",
                                        "sparse24-int8-ymm-vpdpbusd", "sparse24-int4-ymm-vpdpbusd",
                                        "bitmap32-int8-ymm-vpdpbusd", "bitmap32-int4-ymm-vpdpbusd"};
};

}  // namespace

const Kernels& avx_vnni_kernels() {
  static const Kernels table = Driver<YmmOps<VnniDot>>::table();
  return table;
}

}  // namespace twofour::lowbit
