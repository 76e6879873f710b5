#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "tables.h"

namespace twofour {
namespace {

struct Entry {
  Isa isa;
  const char* name;
  Kernels (*table)();  // null where it was not compiled in
};

constexpr Entry entries[] = {
    {Isa::portable, "portable", portable_kernels},
#ifdef TWOFOUR_X86
    {Isa::avx2, "avx2", avx2_kernels},
    {Isa::avx512, "avx512", avx512_kernels},
    {Isa::avx512_bf16, "avx512_bf16", avx512_bf16_kernels},
#else
    {Isa::avx2, "avx2", nullptr},
    {Isa::avx512, "avx512", nullptr},
    {Isa::avx512_bf16, "avx512_bf16", nullptr},
#endif
};

// The compiler's CPU check also asks the operating system whether it saves the wide registers.
bool cpu_has(Isa isa) {
#ifdef TWOFOUR_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return avx512;
    case Isa::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::portable;
#endif
}

std::string supported_names() {
  std::string names;
  for (const Entry& entry : entries) {
    if (supported(entry.isa)) names += (names.empty() ? "" : ", ") + std::string(entry.name);
  }
  return names;
}

const Kernels& choose() {
  const char* forced = std::getenv("TWOFOUR_ISA");
  if (forced && *forced) {
    Isa isa{};
    if (!isa_from_name(forced, &isa)) {
      throw std::runtime_error(
          "TWOFOUR_ISA=" + std::string(forced) +
          " is not an instruction set; this machine has: " + supported_names());
    }
    return kernels_for(isa);
  }
  for (Isa isa : {Isa::avx512_bf16, Isa::avx512, Isa::avx2}) {
    if (supported(isa)) return kernels_for(isa);
  }
  return kernels_for(Isa::portable);
}

}  // namespace

Range share(std::size_t blocks, std::size_t index, std::size_t count) {
  // Shares are even numbers of blocks, because kernels take two at a time.
  const std::size_t pairs = (blocks + 1) / 2;
  const auto bound = [&](std::size_t i) {
    const std::size_t at = 2 * (pairs * i / count);
    return at < blocks ? at : blocks;
  };
  return {bound(index), bound(index + 1)};
}

const char* isa_name(Isa isa) { return entries[static_cast<int>(isa)].name; }

bool isa_from_name(const char* name, Isa* isa) {
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, name) == 0) {
      *isa = entry.isa;
      return true;
    }
  }
  return false;
}

bool supported(Isa isa) { return entries[static_cast<int>(isa)].table != nullptr && cpu_has(isa); }

const Kernels& kernels_for(Isa isa) {
  if (!supported(isa)) {
    const char* why = entries[static_cast<int>(isa)].table
                          ? "this machine lacks the instruction set "
                          : "this build lacks the instruction set ";
    throw std::runtime_error(why + std::string(isa_name(isa)) + "; it has: " + supported_names());
  }
  static const auto tables = [] {
    struct {
      Kernels of[4];
    } all{};
    for (const Entry& entry : entries) {
      if (supported(entry.isa)) all.of[static_cast<int>(entry.isa)] = entry.table();
    }
    return all;
  }();
  return tables.of[static_cast<int>(isa)];
}

const Kernels& active_kernels() {
  static const Kernels& active = choose();
  return active;
}

}  // namespace twofour
