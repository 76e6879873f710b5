#include "kernels/lowbit/kernels.h"

namespace twofour::lowbit {
namespace {

#ifdef TWOFOUR_X86
#ifdef TWOFOUR_EMULATED
bool has_avx_vnni() { return true; }
bool has_avx512_vnni() { return true; }
#else
bool has_avx_vnni() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avxvnni");
}
bool has_avx512_vnni() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
}
#endif
#endif

}  // namespace

// All give the same bits, so what else the processor has may decide between them.
const Kernels& kernels_for(Isa isa) {
  require_supported(isa);
#ifdef TWOFOUR_X86
  if (isa >= Isa::avx512 && has_avx512_vnni()) return avx512_vnni_kernels();
  if (isa >= Isa::avx2) return has_avx_vnni() ? avx_vnni_kernels() : avx2_kernels();
#endif
  return portable_kernels();
}

}  // namespace twofour::lowbit
