// Instruction sets: their names, whether this machine has them, and which one is used.
#pragma once

#include <string>

namespace twofour {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };
inline constexpr Isa all_isas[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

const char* isa_name(Isa isa);
// Throws std::invalid_argument unless it is a name.
Isa isa_from_name(const std::string& name);

// Compiled in, and the processor and the operating system have it.
bool supported(Isa isa);
// Throws std::invalid_argument, naming what this machine has, unless it is supported.
void require_supported(Isa isa);

// TWOFOUR_ISA if it is set and not empty, else the best that is supported; decided once.
// Throws std::invalid_argument if TWOFOUR_ISA names none, or one that is not supported.
Isa active_isa();

}  // namespace twofour
