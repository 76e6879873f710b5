// Chooses the instruction set once.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace twofour::learning {
namespace {

const Kernels& choose() {
  const char* forced = std::getenv("TWOFOUR_ISA");
  const std::string name = forced == nullptr ? "" : forced;
  if (name == "portable") return portable_kernels();
#ifdef TWOFOUR_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  // The engine's avx512_bf16 kernels have no counterpart here: bfloat16 is unpacked with shifts.
  const bool wants_avx512 = name == "avx512" || name == "avx512_bf16";
  if (avx512 && (name.empty() || wants_avx512)) return avx512_kernels();
  if (avx2 && (name.empty() || name == "avx2")) return avx2_kernels();
  if (wants_avx512 || name == "avx2") {
    throw std::invalid_argument("TWOFOUR_ISA=" + name + ": this processor lacks it; unset it");
  }
#endif
  if (name.empty()) return portable_kernels();
  throw std::invalid_argument("TWOFOUR_ISA=" + name +
                              " is unknown here; choose avx512_bf16, avx512, avx2 or portable");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = choose();
  return table;
}

}  // namespace twofour::learning
