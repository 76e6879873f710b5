// One step of the decoder, as every thread of the parallel region executes it.
#pragma once

#include <initializer_list>

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
  void head(std::size_t thread, std::size_t count);

  void normalise(const float* x, const Norm& norm, float* out) const;
  // Norm of the residual stream, prepared; returns what the products of this thread read.
  Inputs prepare_normed(const Norm& norm, std::size_t thread, std::size_t count);
  // A block's last product: onto the residual stream, or beside it, for `add_apart` to add.
  Job output_job(LinearId id, bool apart) const;
  // Adds what lies beside the residual stream to it, normed and scaled; ends with a wait.
  void add_apart(const Norm& norm, std::size_t thread, std::size_t count);
  Inputs prepare_attention(std::size_t thread, std::size_t count);
  Inputs prepare_gated(std::size_t thread, std::size_t count);
  // Prepares every unit's tokens, each of them the k floats that `fill(token, row)` returns.
  template <class Fill>
  Inputs prepare(std::size_t k, std::size_t thread, std::size_t count, Fill fill);
  void multiply(std::size_t layer, const Inputs& inputs, std::initializer_list<Job> jobs,
                std::size_t thread, std::size_t count);
  void patch(const PatchRun& run, std::size_t layer, const Job& job, const Inputs& inputs,
             Range rows);
  void gated(std::size_t layer, const Inputs& inputs, std::size_t thread, std::size_t count);
  bool patched(std::size_t unit, std::size_t layer, LinearId id) const;
  std::size_t unit_offset(std::size_t unit, std::size_t k) const;

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

}  // namespace twofour
