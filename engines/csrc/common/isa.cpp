#include "common/isa.h"

#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace twofour {
namespace {

constexpr const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16"};
static_assert(std::size(names) == std::size(all_isas));

std::string supported_names() {
  std::string found;
  for (const Isa isa : all_isas) {
    if (supported(isa)) found += (found.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  return found;
}

Isa choose() {
  const char* forced = std::getenv("TWOFOUR_ISA");
  if (forced && *forced) {
    try {
      const Isa isa = isa_from_name(forced);
      require_supported(isa);
      return isa;
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("TWOFOUR_ISA: " + std::string(error.what()));
    }
  }
  Isa best = Isa::portable;
  for (const Isa isa : all_isas) {
    if (supported(isa)) best = isa;
  }
  return best;
}

}  // namespace

const char* isa_name(Isa isa) { return names[static_cast<int>(isa)]; }

Isa isa_from_name(const std::string& name) {
  for (const Isa isa : all_isas) {
    if (name == isa_name(isa)) return isa;
  }
  throw std::invalid_argument(
      "'" + name + "' is not an instruction set; this machine has: " + supported_names());
}

#ifdef TWOFOUR_X86

// The compiler's check also asks the operating system whether it saves the wide registers.
bool supported(Isa isa) {
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
#ifdef TWOFOUR_EMULATED
      return true;
#endif
      return avx512;
    case Isa::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
}

#else

bool supported(Isa isa) { return isa == Isa::portable; }

#endif

void require_supported(Isa isa) {
  if (supported(isa)) return;
  throw std::invalid_argument("this machine or this build lacks the instruction set " +
                              std::string(isa_name(isa)) + "; it has: " + supported_names());
}

Isa active_isa() {
  static const Isa active = choose();
  return active;
}

}  // namespace twofour
