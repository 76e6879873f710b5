// One function per instruction set's file. Only those that were compiled in may be called, and only
// on a CPU that has the instruction set; dispatch.cpp sees to both.
#pragma once

#include "kernels.h"

namespace twofour {

Kernels portable_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512_bf16_kernels();

}  // namespace twofour
