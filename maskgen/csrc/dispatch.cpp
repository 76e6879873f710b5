#include "common/isa.h"
#include "kernels.h"

namespace twofour::learning {
namespace {

const Kernels& choose() {
  // Asked for on every processor: it refuses a bad TWOFOUR_ISA.
  [[maybe_unused]] const Isa isa = active_isa();
#ifdef TWOFOUR_X86
  // avx512_bf16 adds nothing here: bf16 is unpacked with shifts.
  if (isa == Isa::avx512 || isa == Isa::avx512_bf16) return avx512_kernels();
  if (isa == Isa::avx2) return avx2_kernels();
#endif
  return portable_kernels();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = choose();
  return table;
}

}  // namespace twofour::learning
