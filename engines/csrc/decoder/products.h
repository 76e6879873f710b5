// The products of one format of activations: bf16, or int8 with a scale for every block of inputs.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "kernels/lowbit/kernels.h"

namespace twofour {

class Products {
 public:
  // `block`: inputs that share a scale; 0 for weights of bf16.
  Products(Isa isa, std::size_t block)
      : bf16_(kernels_for(isa)), lowbit_(lowbit::kernels_for(isa)), block_(block) {}

  bool quantises() const { return block_ > 0; }
  std::size_t block() const { return block_; }
  // Gated products of bf16 come out prepared; those of int8 and int4 must be prepared afterwards.
  bool prepares_gated() const { return !quantises(); }

  std::size_t prepared_bytes(std::size_t tokens, std::size_t k) const {
    return quantises() ? lowbit_.prepared_bytes(tokens, k, block_)
                       : bf16_.prepared_bytes(tokens, k);
  }
  // One row, which is token `token` of `tokens`.
  void prepare(const float* row, std::size_t tokens, std::size_t k, std::byte* to,
               std::size_t token) const {
    if (quantises()) {
      lowbit_.prepare_f32(row, 0, tokens, k, block_, to, token, token + 1);
    } else {
      bf16_.prepare_f32(row, 0, tokens, k, to, token, token + 1);
    }
  }
  void linear(const Weights& w, const std::byte* prepared, std::size_t tokens, const Output& y,
              Range rows) const {
    (quantises() ? lowbit_.linear : bf16_.linear)(w, prepared, tokens, y, rows.begin, rows.end);
  }
  void gated(const Weights& gate, const Weights& up, const std::byte* prepared, std::size_t tokens,
             const Output& y, Range rows) const {
    (quantises() ? lowbit_.gated : bf16_.gated)(gate, up, prepared, tokens, y, rows.begin,
                                                rows.end);
  }

 private:
  const Kernels& bf16_;
  const lowbit::Kernels& lowbit_;
  std::size_t block_;
};

}  // namespace twofour
