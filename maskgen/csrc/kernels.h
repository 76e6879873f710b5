// The learning kernels' interface, one table of functions per instruction set.
//
// A layer has `rows` outputs and 4 * `groups` inputs. Weights, masked weights and their gradients
// are (rows, 4 * groups); logits are planes per row, (rows, 6, groups) for placement logits and
// (rows, 4, groups) for weight logits, so that neighbouring groups lie in neighbouring lanes. The
// entropic kernels and keep_top take any pattern: m where the others have 4.
#pragma once

#include <cstdint>

namespace twofour::learning {

struct NoiseKey {
  std::uint64_t seed;
  std::uint32_t step;
  std::uint32_t micro_batch;  // global index, over all ranks
  std::uint32_t layer;
};

// n weights are kept of every m.
struct Pattern {
  int n, m;
};

struct Layer {
  const void* weight;
  const float* logits;
  std::int64_t rows;
  std::int64_t groups;
  bool is_bf16;  // else float32; the same type for weight, masked weight and gradient
};

struct Gradient {
  const void* masked_weight;  // dL / d(masked weight)
  float* logits;              // accumulated into
  float regularisation;       // lambda of -lambda * sum((w * mask)^2)
};

// What recovered weights are rounded to; maskgen/recovery/quantiser.py.
struct Grid {
  int block;  // inputs of a row that share a scale
  bool is_int4;
  bool minima;  // of the block's own; int4 alone
};

inline constexpr int largest_block = 1024;  // channels

// Blocks of channels whose order is learned; maskgen/transform/ordered_linear.py.
struct Blocks {
  const float* scores;         // (blocks, rows, size) by channel
  const float* slopes;         // the same: dL / d(mask)
  const std::int64_t* places;  // (blocks, size), which channel stands at each place
  std::int64_t count, rows, size;
};

// RMSNorm over the rows of x, (rows, size).
struct Norm {
  const void* x;
  const void* weight;  // (size)
  std::int64_t rows, size;
  bool is_bf16;  // x, weight, output and gradients; else float32
};

inline constexpr int sddmm_tokens = 256;  // so many at once stay in the second cache

// Groups of a layer whose weights' gradients are wanted.
struct Sampled {
  const void* gradient;         // (tokens, rows), of the layer's outputs
  const void* inputs;           // (tokens, groups * m)
  const std::int64_t* numbers;  // (count), row * groups + group
  std::int64_t tokens, rows, groups, count;
  int m;
  bool is_bf16;   // gradient and inputs; else float32
  void* scratch;  // (rows + groups * m, sddmm_tokens), of the same type
};

// What a language model says of the next tokens; maskgen/learning/loss.py.
struct Predictions {
  const void* logits;           // (positions, vocabulary)
  const void* teacher;          // the same of another model, or null
  const std::int64_t* targets;  // (positions); below 0 where nothing is predicted
  std::int64_t positions, vocabulary;
  float share;   // of the divergence from the teacher in the loss
  bool is_bf16;  // logits, teacher and gradient; else float32
};

// Summed over positions.
struct Losses {
  double text, divergence;
};

struct Decision {
  std::uint8_t* codes;          // (rows, groups)
  const std::uint8_t* compare;  // the prior's codes
  std::int64_t changed;         // groups whose code is not the prior's
  double sharpness;             // summed over groups: probability of the chosen placement or pair
};

struct Kernels {
  const char* name;
  // y = softmax((kappa * logits + gumbel) / tau) over six placements; masked = w * sum(y *
  // placement)
  void (*gumbel_forward)(const Layer&, float kappa, float tau, const NoiseKey&, void* masked);
  void (*gumbel_backward)(const Layer&, float kappa, float tau, const NoiseKey&, const Gradient&);
  // relaxed Gumbel top-2 of logits / lambda, temperature tau
  void (*topk_forward)(const Layer&, float lambda, float tau, const NoiseKey&, void* masked);
  void (*topk_backward)(const Layer&, float lambda, float tau, const NoiseKey&, const Gradient&);
  // Gumbel top-n of logits / lambda, relaxed with an entropy of weight tau
  void (*entropic_forward)(const Layer&, Pattern, float lambda, float tau, const NoiseKey&,
                           void* masked);
  void (*entropic_backward)(const Layer&, Pattern, float lambda, float tau, const NoiseKey&,
                            const Gradient&);
  void (*keep_top)(const Layer&, Pattern, std::uint8_t* kept);
  // two of four without replacement from softmax(logits); the update adds
  // rate * d(log p(sample)) / d(logits) for the very sample that the same key draws
  void (*sample_forward)(const Layer&, const NoiseKey&, void* masked);
  void (*sample_update)(const Layer&, const NoiseKey&, float rate, float* logits);
  void (*decide_placements)(const Layer&, float kappa, Decision&);
  void (*decide_weights)(const Layer&, float lambda, Decision&);
  // all (rows, columns); what is not kept becomes 0
  void (*fake_quantise)(const float* weight, const std::uint8_t* keep, std::int64_t rows,
                        std::int64_t columns, Grid, float* out);
  // found is (blocks, size, size), channel by place
  void (*order_gradient)(const Blocks&, Pattern, float* found);
  // scales is (rows), for the gradient
  void (*rms_norm)(const Norm&, float epsilon, void* out, float* scales);
  void (*rms_norm_gradient)(const Norm&, const float* scales, const void* gradient, void* out);
  // adds to out, (count, m), the wanted entries of gradient^T inputs
  void (*sampled_products)(const Sampled&, float* out);
  // gradient is `scale` times that of the sum over positions, like logits; null if not wanted
  Losses (*next_token_loss)(const Predictions&, float scale, void* gradient);
};

const Kernels& portable_kernels();
#ifdef TWOFOUR_X86
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

// Those of active_isa(); throws what that throws.
const Kernels& kernels();

}  // namespace twofour::learning
