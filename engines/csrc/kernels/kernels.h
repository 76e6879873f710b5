// Products of packed weights with activations. Plain C++: raw pointers in, no Python, no torch.
// This file is about the layouts of bf16 values; lowbit/kernels.h about those of int8 and int4.
//
// y[token][row] = sum over inputs of W[row][input] * bf16(x[token][input]), accumulated in fp32.
// Activations are rounded to bf16 (nearest even) on entry, on every instruction set.
//
// A product has two steps. `prepare` brings activations into the order that the instruction set's
// kernels read; then `linear` (or `gated`) multiplies a range of row blocks. Both are *range*
// forms: they do their share and return, so that a caller may run them inside its own OpenMP
// parallel region, with a barrier between the two. team.h has the forms that open the region
// themselves.
//
// Reduction order: each output is one chain of fp32 additions in rising order of inputs, whatever
// the number of tokens, the row range, the blocking or the thread. So every kernel of one table is
// invariant: same weights and same activations give the same bits, batch mates or not. (Only a
// token with an activation that is not finite may differ: where it meets zeros of a tile that was
// made dense, outputs that do not use it become NaN too.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"
#include "kernels/layout.h"

namespace twofour {

// Packed weights, not owned. Any alignment works; 64 bytes is fastest.
struct Weights {
  Layout layout;
  std::size_t n;  // outputs (rows)
  std::size_t k;  // inputs
  const std::byte* data;
  // Low-bit layouts: inputs that share a scale (32, 64 or 128; a row's last block may be shorter),
  // and whether every block has a minimum of its own (int4 only).
  std::size_t block = 0;
  bool minima = false;
};

enum class OutputKind : int {
  f32,       // y = product (+ bias)
  f32_add,   // y += product (+ bias): the residual stream
  bf16,      // y = bf16(product (+ bias))
  prepared,  // y is prepared activations of the same tokens, with k = n: the next product's input
};
// What a gated product makes of its gate: x * sigmoid(linear x + cubic x^3). SiLU as it stands;
// GELU in its tanh form (arXiv 1606.08415, section 2) with linear = 2 sqrt(2 / pi) and cubic =
// 0.044715 times that.
struct GateCurve {
  float linear = 1.0f, cubic = 0.0f;
};
struct Output {
  OutputKind kind;
  void* data;
  std::size_t stride;           // elements between tokens; unused for `prepared`
  const float* bias = nullptr;  // n values, or none
  GateCurve curve{};            // of gated products
};

// A difference between two masks of one layer, as compressed rows; docs/kernels.md, "Patches".
// Entries of row r are row_start[r] .. row_start[r + 1] - 1, by rising group.
struct Patch {
  std::size_t n, k;
  const std::uint32_t* row_start;  // n + 1
  const std::uint32_t* group;      // index of the changed group in its row
  const std::uint8_t* codes;       // base code | new code << 4
  const std::uint16_t* delta;      // 4 bf16: +w where the weight is added, -w where removed, else 0
};

// Blocks [begin, end) of thread `index` out of `count`.
struct Range {
  std::size_t begin, end;
};
Range share(std::size_t blocks, std::size_t index, std::size_t count);

// The kernels of one instruction set.
struct Kernels {
  // Bytes of prepared activations for `tokens` rows of k inputs; align the buffer to 64.
  std::size_t (*prepared_bytes)(std::size_t tokens, std::size_t k);
  // Prepares tokens [begin, end) of `tokens`; x is the whole batch, `stride` elements between
  // tokens.
  void (*prepare_f32)(const float* x, std::size_t stride, std::size_t tokens, std::size_t k,
                      void* prepared, std::size_t begin, std::size_t end);
  void (*prepare_bf16)(const std::uint16_t* x, std::size_t stride, std::size_t tokens,
                       std::size_t k, void* prepared, std::size_t begin, std::size_t end);

  // Row blocks [begin, end) of row_blocks(w.n). Either layout of bf16.
  void (*linear)(const Weights& w, const void* prepared, std::size_t tokens, const Output& y,
                 std::size_t begin, std::size_t end);
  // curve(gate x) * (up x): both of one shape and layout. `y.bias` is not used.
  void (*gated)(const Weights& gate, const Weights& up, const void* prepared, std::size_t tokens,
                const Output& y, std::size_t begin, std::size_t end);
  // y = curve(gate) * up over tokens x n floats, row blocks [begin, end): for callers that must
  // change gate or up (patches) before the product. gate and up have `stride` elements between
  // tokens.
  void (*gate_mul)(const float* gate, const float* up, std::size_t stride, std::size_t n,
                   std::size_t tokens, const Output& y, std::size_t begin, std::size_t end);
  // y[t] += patch product, for the `count` tokens listed in `which`, outputs of row blocks
  // [begin, end). `prepared` and `tokens` are those of the whole batch.
  void (*patch_add)(const Patch& patch, const void* prepared, std::size_t tokens,
                    const std::uint32_t* which, std::size_t count, float* y, std::size_t stride,
                    std::size_t begin, std::size_t end);
  // Reads `bytes` (a multiple of 64) with vector loads; the return value only keeps the loads
  // alive.
  std::uint64_t (*read)(const std::byte* data, std::size_t bytes);
  // Which kernel `linear` runs for a batch of this size, for reports.
  const char* (*kernel_name)(Layout layout, std::size_t tokens);
};

// Throws std::invalid_argument unless the instruction set is supported.
const Kernels& kernels_for(Isa isa);
// Those of active_isa(); throws what that throws.
const Kernels& active_kernels();

}  // namespace twofour
