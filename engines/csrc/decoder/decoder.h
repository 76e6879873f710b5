// A decoder-only transformer, one native call per step; `Blocks` says how its family differs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "decoder/model.h"
#include "decoder/ops.h"
#include "decoder/products.h"
#include "decoder/step_plan.h"

namespace twofour {

struct DecoderLimits {
  std::size_t max_tokens;  // most tokens of one step
  std::size_t max_logits;  // most rows of logits of one step
  std::size_t context;     // positions below this
  std::size_t pages;       // pages of the key-value cache
  int threads;
};

// Memory that the system hands out zeroed, page by page as it is touched: limits may be generous,
// and what no step uses costs nothing.
class LazyBuffer {
 public:
  explicit LazyBuffer(std::size_t bytes);
  ~LazyBuffer();
  LazyBuffer(const LazyBuffer&) = delete;
  LazyBuffer& operator=(const LazyBuffer&) = delete;
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  std::size_t bytes_;
};

class Decoder {
 public:
  // Throws std::invalid_argument where sizes do not fit together.
  Decoder(Model model, DecoderLimits limits, Isa isa);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // A full set of packed weights, one entry per layer; the data must outlive it.
  std::size_t add_weights(std::vector<Linears> layers);
  void remove_weights(std::size_t set);
  // A mask: a set of weights, and what is added to its products (empty: nothing).
  std::size_t add_mask(std::size_t set, std::vector<Patches> patches);
  void remove_mask(std::size_t mask);

  // Runs one step. Throws std::invalid_argument for input out of range, before anything is
  // computed.
  void step(const StepInput& input);

  std::size_t page_bytes() const { return page_stride_; }

 private:
  struct Mask {
    bool used = false;
    std::size_t weights = 0;
    std::vector<Patches> patches;
  };
  struct Scratch;  // one thread's
  class Run;       // one step
  friend class Run;

  void check(const StepInput& input) const;
  StepPlan plan(const StepInput& input) const;

  Model model_;
  DecoderLimits limits_;
  const Kernels& kernels_;
  const Products layer_products_;
  const Products head_products_;
  const DecoderOps& ops_;
  const bool adds_apart_;
  std::vector<std::vector<Linears>> sets_;
  std::vector<Mask> masks_;
  std::size_t page_stride_;
  std::unique_ptr<LazyBuffer> cache_;
  // Sized for max_tokens once, so that a step allocates nothing but its plan.
  std::unique_ptr<LazyBuffer> residual_, qkv_, query_, attention_, rotary_, gate_, up_, prepared_,
      addend_, intermediate_, quantised_, quantised_scales_;
  // Of layers with experts: normed tokens, what each goes to and how it counts, experts' answers.
  std::unique_ptr<LazyBuffer> normed_, chosen_, chosen_weights_, expert_out_;
  std::vector<float> partial_;
  std::vector<std::unique_ptr<Scratch>> scratch_;
  std::unique_ptr<std::atomic<std::size_t>[]> next_item_;
};

}  // namespace twofour
