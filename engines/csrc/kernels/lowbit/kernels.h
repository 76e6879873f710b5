// Products of packed int8 and int4 weights with activations, in integers within a block of inputs.
//
//   y[token][row] = sum over blocks, by rising input, of float(I) * (scale[row][block] * s)
//   I = sum over the block's kept inputs of value[row][input] * a[token][input]
//
// `a` and `s` are the activations of one token and block, quantised to int8 (activations.h). I is
// exact; each of the three float operations is rounded by itself, never fused. So one output is one
// chain of fp32 additions, and equal for any batch, blocking, thread and *instruction set*.
//
// Range forms, as in kernels/kernels.h: `prepare`, a barrier, then `linear` or `gated`.
#pragma once

#include "kernels/kernels.h"
#include "kernels/lowbit/layout.h"

namespace twofour::lowbit {

// Prepared activations serve all layouts of one block size. Align the buffer to 64 bytes.
struct Kernels {
  std::size_t (*prepared_bytes)(std::size_t tokens, std::size_t k, std::size_t block);
  // Prepares tokens [begin, end) of `tokens`; x is the whole batch.
  void (*prepare_f32)(const float* x, std::size_t stride, std::size_t tokens, std::size_t k,
                      std::size_t block, void* prepared, std::size_t begin, std::size_t end);
  void (*prepare_bf16)(const std::uint16_t* x, std::size_t stride, std::size_t tokens,
                       std::size_t k, std::size_t block, void* prepared, std::size_t begin,
                       std::size_t end);
  // Row blocks [begin, end). Not OutputKind::prepared: a block of the next product's inputs spans
  // several row blocks, which several threads may write.
  void (*linear)(const Weights& w, const void* prepared, std::size_t tokens, const Output& y,
                 std::size_t begin, std::size_t end);
  // curve(gate x) * (up x): both of one shape and one block size. `y.bias` is not used.
  void (*gated)(const Weights& gate, const Weights& up, const void* prepared, std::size_t tokens,
                const Output& y, std::size_t begin, std::size_t end);
  // Which kernel `linear` runs, for reports.
  const char* (*kernel_name)(Layout layout);
};

// Throws std::invalid_argument unless the instruction set is supported. What `isa` needs besides
// its own name is in docs/kernels.md; without it these are the next lower ones.
const Kernels& kernels_for(Isa isa);

const Kernels& portable_kernels();
#ifdef TWOFOUR_X86
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_vnni_kernels();
#endif

}  // namespace twofour::lowbit
