// Forms that open the OpenMP region themselves: Python, the torch operator and benchmarks call
// these. `threads` 0 is the runtime's own number (omp_set_num_threads, OMP_NUM_THREADS).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/pack.h"

namespace twofour {

// Activations as they come: fp32 or bf16, `stride` elements between tokens.
struct Input {
  const void* data;
  bool is_bf16;
  std::size_t stride;
  std::size_t tokens;
};

// Prepared activations live in a buffer of the calling thread that only grows.
void linear_team(const Kernels& kernels, const Weights& w, const Input& x, const Output& y,
                 int threads);
void gated_team(const Kernels& kernels, const Weights& gate, const Weights& up, const Input& x,
                const Output& y, int threads);
void patch_add_team(const Kernels& kernels, const Patch& patch, const Input& x,
                    const std::uint32_t* which, std::size_t count, float* y, std::size_t stride,
                    int threads);
std::uint64_t read_team(const Kernels& kernels, const std::byte* data, std::size_t bytes,
                        int threads);

bool pack_sparse_team(const std::uint16_t* dense, std::size_t stride, const std::uint8_t* codes,
                      std::size_t n, std::size_t k, std::byte* packed, int threads);
void pack_dense_team(const std::uint16_t* dense, std::size_t stride, std::size_t n, std::size_t k,
                     std::byte* packed, int threads);
void unpack_team(const Weights& packed, std::uint16_t* dense, std::size_t stride,
                 std::uint8_t* codes, int threads);
Finding check_team(const Weights& packed, int threads);
// False, and nothing changed, if the weights do not hold the mask that the patch changes from.
bool patch_apply_team(const Patch& patch, std::byte* packed, bool revert, int threads);

}  // namespace twofour
