// One step of the decoder, as every thread of the parallel region executes it.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <vector>

#include "decoder/barrier.h"
#include "decoder/decoder.h"
#include "kernels/numeric.h"

namespace twofour {

// Up to this many tokens every thread prepares all of them for itself: cheaper than a barrier.
inline constexpr std::size_t few_tokens = 4;

struct Decoder::Scratch {
  // `blocks`: scales of a token's quantised inputs; 0 where nothing is quantised.
  Scratch(const Model& model, std::size_t width, std::size_t prepared_bytes, std::size_t blocks);

  std::vector<float> row;  // one token, the widest input of a product
  LazyBuffer prepared;     // few_tokens of them
  // Of a layer with experts. The first three are of few_tokens.
  std::vector<float> normed, chosen_weights;
  std::vector<std::uint32_t> chosen;
  std::vector<float> router_scores;
  Rows routed;                            // the rows that experts get
  std::vector<std::uint32_t> token_of;    // of a routed row
  std::vector<std::uint32_t> row_of;      // of a token's choice
  std::vector<std::size_t> expert_begin;  // first routed row of each expert
  std::vector<std::int8_t> quantised;
  std::vector<float> quantised_scales;
  std::vector<std::uint16_t> queries, key;
  std::vector<const std::uint16_t*> query_rows;
  std::vector<std::int32_t> positions;
  std::vector<float> part, total;  // maximum, sum and accumulator of an item's rows
};

class Decoder::Run {
 public:
  Run(Decoder& decoder, const StepInput& input, const StepPlan& plan, std::uint32_t threads);

  // Called once by each of `count` threads.
  void work(std::size_t thread, std::size_t count);

 private:
  struct Job {
    LinearId id;
    OutputKind kind;
    float* data;
    std::size_t stride;
  };

  // The activations that a product reads.
  struct Inputs {
    const std::byte* prepared;
    QuantisedInputs quantised;  // for patches of int8 and int4 values
  };

  void embed(std::size_t thread, std::size_t count);
  void attention_layer(std::size_t layer, std::size_t thread, std::size_t count);
  void mlp_layer(std::size_t layer, std::size_t thread, std::size_t count);
  void expert_layer(std::size_t layer, std::size_t thread, std::size_t count);
  // Where tokens go: `chosen` and `weights` have the model's choices a token.
  struct Choices {
    const float* normed;
    const std::uint32_t* chosen;
    const float* weights;
  };
  Choices route_tokens(std::size_t layer, std::size_t thread, std::size_t count);
  void route(const Layer& layer, const float* normed, std::uint32_t* chosen, float* weights,
             std::vector<float>& scores) const;
  void gather_rows(const Layer& layer, const Choices& choices, Scratch& scratch) const;
  void gather_patches(std::size_t unit, std::size_t first, Scratch& scratch) const;
  void add_experts(const Choices& choices, std::size_t thread, std::size_t count);
  void head(std::size_t thread, std::size_t count);

  void normalise(const float* x, const Norm& norm, float* out) const;
  // Norm of the residual stream, prepared; returns what the products of this thread read.
  Inputs prepare_normed(const Norm& norm, std::size_t thread, std::size_t count);
  // A block's last product: onto the residual stream, or beside it, for `add_apart` to add.
  Job output_job(LinearId id, bool apart) const;
  // Adds what lies beside the residual stream to it, normed and scaled; ends with a wait.
  void add_apart(const Norm& norm, std::size_t thread, std::size_t count);
  Inputs prepare_attention(std::size_t thread, std::size_t count);
  // Prepares every unit's rows, each of them the k floats that `fill(row, to)` returns.
  template <class Fill>
  Inputs prepare(const Rows& rows, std::size_t k, std::size_t thread, std::size_t count, Fill fill);
  void multiply(std::size_t layer, const Rows& rows, const Inputs& inputs,
                std::initializer_list<Job> jobs, std::size_t thread, std::size_t count);
  void patch(const PatchRun& run, const Unit& unit, std::size_t layer, const Job& job,
             const Inputs& inputs, Range blocks);
  // Gate and up of every unit, the product prepared or as floats (`prepares_gated`).
  void gated(std::size_t layer, const Rows& rows, const Inputs& inputs, std::size_t thread,
             std::size_t count);
  // What `gated` left, as the input of the next product.
  Inputs gated_inputs(std::size_t layer, const Rows& rows, std::size_t thread, std::size_t count);
  bool patched(const Rows& rows, std::size_t unit, std::size_t layer, LinearId id) const;
  std::size_t unit_offset(const Unit& unit, std::size_t k) const;

  void rotate_tokens(std::size_t layer, std::size_t thread, std::size_t count);
  void store_key_value(std::size_t layer, std::size_t token, std::size_t kv_head, Scratch& scratch);
  void rotate_query(std::size_t layer, std::size_t token, std::size_t head, std::uint16_t* out);
  void attend(std::size_t layer, const AttentionItem& item, Scratch& scratch);
  void attend_single(std::size_t layer, const AttentionItem& item, Scratch& scratch);
  void collect(std::size_t token, float* row, Scratch& scratch);
  // Of one head at x, which is part of `row`, the `width` values of all heads.
  Rotary rotary(std::size_t layer, std::size_t token, const float* norm, const float* x,
                const float* row, std::size_t width) const;
  Attend attention_of(std::size_t layer, const AttentionItem& item, Scratch& scratch) const;
  Softmax partial(std::size_t number) const;
  std::byte* page(std::size_t layer, std::size_t sequence, std::size_t position,
                  std::size_t kv_head) const;

  Decoder& d_;
  const Model& m_;
  const StepInput& in_;
  const StepPlan& plan_;
  float* residual_;
  float* qkv_;
  float* attention_;
  std::size_t qkv_width_;
  bool replicate_;
  Barrier barrier_;
};

// Templates that both run.cpp and run_experts.cpp use.
inline float* floats(const std::unique_ptr<LazyBuffer>& buffer) {
  return reinterpret_cast<float*>(buffer->data());
}

template <class Fill>
Decoder::Run::Inputs Decoder::Run::prepare(const Rows& rows, std::size_t k, std::size_t thread,
                                           std::size_t count, Fill fill) {
  Scratch& scratch = *d_.scratch_[thread];
  const Products& products = d_.layer_products_;
  std::byte* to = replicate_ ? scratch.prepared.data() : d_.prepared_->data();
  std::int8_t* values =
      replicate_ ? scratch.quantised.data() : reinterpret_cast<std::int8_t*>(d_.quantised_->data());
  float* scales = replicate_ ? scratch.quantised_scales.data() : floats(d_.quantised_scales_);
  const bool patched = products.quantises() && !rows.patch_runs.empty();
  const std::size_t blocks = patched ? lowbit::block_count(k, products.block()) : 0;
  const Range mine = replicate_ ? Range{0, rows.count()} : share(rows.count(), thread, count);
  for (const Unit& unit : rows.units) {
    for (std::size_t r = std::max(mine.begin, unit.begin); r < std::min(mine.end, unit.end); ++r) {
      const float* row = fill(r, scratch.row.data());
      products.prepare(row, unit.size(), k, to + unit_offset(unit, k), r - unit.begin);
      if (patched) quantise_row(row, k, products.block(), values + r * k, scales + r * blocks);
    }
  }
  if (!replicate_) barrier_.wait();
  return {to, {values, scales}};
}

}  // namespace twofour
