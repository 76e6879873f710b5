#include "kernels/kernels.h"
#include "kernels/tables.h"

namespace twofour {

const Kernels& kernels_for(Isa isa) {
  require_supported(isa);
#ifdef TWOFOUR_X86
  if (isa == Isa::avx512_bf16) return avx512_bf16_kernels();
  if (isa == Isa::avx512) return avx512_kernels();
  if (isa == Isa::avx2) return avx2_kernels();
#endif
  return portable_kernels();
}

const Kernels& active_kernels() {
  static const Kernels& active = kernels_for(active_isa());
  return active;
}

}  // namespace twofour
