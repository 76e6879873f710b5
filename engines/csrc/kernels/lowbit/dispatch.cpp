#include "kernels/lowbit/kernels.h"

namespace twofour::lowbit {

const Kernels& kernels_for(Isa isa) {
  require_supported(isa);
  return portable_kernels();
}

}  // namespace twofour::lowbit
