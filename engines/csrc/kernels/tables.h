// One function per instruction set's file, which may be called only on a machine that has the
// instruction set; dispatch.cpp sees to that.
#pragma once

#include "kernels/kernels.h"

namespace twofour {

const Kernels& portable_kernels();
#ifdef TWOFOUR_X86
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();
#endif

}  // namespace twofour
