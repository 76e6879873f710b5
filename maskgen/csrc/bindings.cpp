// The Python edge: checks every array, releases the GIL, calls the chosen kernel.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/lanes.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace twofour::learning;
using twofour::lanes;

namespace {

// torch's tensors: numpy has no bf16. `Weight`: bfloat16 or float32.
using Weight = nb::ndarray<nb::pytorch, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<nb::pytorch, float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Floats2d = nb::ndarray<nb::pytorch, float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<nb::pytorch, std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<nb::pytorch, float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<nb::pytorch, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<nb::pytorch, std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<nb::pytorch, std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

bool is_bf16(const Weight& a) {
  const nb::dlpack::dtype type = a.dtype();
  if (type == nb::dtype<float>()) return false;
  if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16) {
    return true;
  }
  refuse("weights must be bfloat16 or float32");
}

void same_as_weight(const Weight& weight, const Weight& other, const char* name) {
  if (other.shape(0) != weight.shape(0) || other.shape(1) != weight.shape(1) ||
      other.dtype() != weight.dtype()) {
    refuse(std::string(name) + " must have the shape and type of the weight");
  }
}

// Groups of `m` weights.
Layer make_layer(const Weight& weight, const Logits& logits, std::size_t planes,
                 std::size_t m = 4) {
  const std::size_t groups = weight.shape(1) / m;
  const std::string size = std::to_string(m);
  if (weight.shape(1) % m != 0) refuse("the weight's inputs must divide by " + size);
  if (logits.shape(0) != weight.shape(0) || logits.shape(1) != planes ||
      logits.shape(2) != groups) {
    refuse("the logits must be (rows, " + std::to_string(planes) + ", inputs / " + size + ")");
  }
  return {weight.data(), logits.data(), static_cast<std::int64_t>(weight.shape(0)),
          static_cast<std::int64_t>(groups), is_bf16(weight)};
}

void same_as_logits(const Logits& logits, const Logits& other) {
  for (std::size_t i = 0; i < 3; ++i) {
    if (logits.shape(i) != other.shape(i)) refuse("the gradient must have the logits' shape");
  }
}

void positive(float value, const char* name) {
  if (!(value > 0.0f)) refuse(std::string(name) + " must be above 0");
}

NoiseKey make_key(std::uint64_t seed, std::uint32_t step, std::uint32_t micro_batch,
                  std::uint32_t layer) {
  return {seed, step, micro_batch, layer};
}

template <auto kernel, std::size_t planes>
void relax_forward(const Weight& weight, const Logits& logits, const Weight& masked, float scale,
                   float tau, std::uint64_t seed, std::uint32_t step, std::uint32_t micro_batch,
                   std::uint32_t layer) {
  const Layer view = make_layer(weight, logits, planes);
  same_as_weight(weight, masked, "the masked weight");
  positive(scale, "the logits' scale");
  positive(tau, "tau");
  const NoiseKey key = make_key(seed, step, micro_batch, layer);
  nb::gil_scoped_release released;
  (kernels().*kernel)(view, scale, tau, key, masked.data());
}

template <auto kernel, std::size_t planes>
void relax_backward(const Weight& weight, const Logits& logits, const Weight& masked_gradient,
                    const Logits& gradient, float scale, float tau, float regularisation,
                    std::uint64_t seed, std::uint32_t step, std::uint32_t micro_batch,
                    std::uint32_t layer) {
  const Layer view = make_layer(weight, logits, planes);
  same_as_weight(weight, masked_gradient, "the masked weight's gradient");
  same_as_logits(logits, gradient);
  positive(scale, "the logits' scale");
  positive(tau, "tau");
  const NoiseKey key = make_key(seed, step, micro_batch, layer);
  const Gradient out{masked_gradient.data(), gradient.data(), regularisation};
  nb::gil_scoped_release released;
  (kernels().*kernel)(view, scale, tau, key, out);
}

// N:M with the m of the logits' planes.
Pattern pattern_of(const Logits& logits, int n) {
  const auto m = static_cast<int>(logits.shape(1));
  if (m < 4 || m > 32 || m % 4 != 0) refuse("a group must have 4 to 32 weights, a multiple of 4");
  if (n < 1 || n >= m) refuse("n must be at least 1 and below " + std::to_string(m));
  return {n, m};
}

void entropic_forward(const Weight& weight, const Logits& logits, const Weight& masked, int n,
                      float scale, float tau, std::uint64_t seed, std::uint32_t step,
                      std::uint32_t micro_batch, std::uint32_t layer) {
  const Pattern pattern = pattern_of(logits, n);
  const Layer view = make_layer(weight, logits, logits.shape(1), logits.shape(1));
  same_as_weight(weight, masked, "the masked weight");
  positive(scale, "the logits' scale");
  positive(tau, "tau");
  const NoiseKey key = make_key(seed, step, micro_batch, layer);
  nb::gil_scoped_release released;
  kernels().entropic_forward(view, pattern, scale, tau, key, masked.data());
}

void entropic_backward(const Weight& weight, const Logits& logits, const Weight& masked_gradient,
                       const Logits& gradient, int n, float scale, float tau, float regularisation,
                       std::uint64_t seed, std::uint32_t step, std::uint32_t micro_batch,
                       std::uint32_t layer) {
  const Pattern pattern = pattern_of(logits, n);
  const Layer view = make_layer(weight, logits, logits.shape(1), logits.shape(1));
  same_as_weight(weight, masked_gradient, "the masked weight's gradient");
  same_as_logits(logits, gradient);
  positive(scale, "the logits' scale");
  positive(tau, "tau");
  const NoiseKey key = make_key(seed, step, micro_batch, layer);
  const Gradient out{masked_gradient.data(), gradient.data(), regularisation};
  nb::gil_scoped_release released;
  kernels().entropic_backward(view, pattern, scale, tau, key, out);
}

void sample_forward(const Weight& weight, const Logits& logits, const Weight& masked,
                    std::uint64_t seed, std::uint32_t step, std::uint32_t micro_batch,
                    std::uint32_t layer) {
  const Layer view = make_layer(weight, logits, 4);
  same_as_weight(weight, masked, "the masked weight");
  const NoiseKey key = make_key(seed, step, micro_batch, layer);
  nb::gil_scoped_release released;
  kernels().sample_forward(view, key, masked.data());
}

Layer logits_alone(const Logits& logits, std::size_t planes) {
  if (logits.shape(1) != planes) {
    refuse("the logits must be (rows, " + std::to_string(planes) + ", groups)");
  }
  return {nullptr, logits.data(), static_cast<std::int64_t>(logits.shape(0)),
          static_cast<std::int64_t>(logits.shape(2)), false};
}

void keep_top(const Logits& logits, const Codes& kept, int n) {
  const Pattern pattern = pattern_of(logits, n);
  const Layer view = logits_alone(logits, logits.shape(1));
  if (kept.shape(0) != logits.shape(0) || kept.shape(1) != logits.shape(1) * logits.shape(2)) {
    refuse("what is kept must be (rows, inputs)");
  }
  nb::gil_scoped_release released;
  kernels().keep_top(view, pattern, kept.data());
}

void sample_update(const Logits& logits, float rate, std::uint64_t seed, std::uint32_t step,
                   std::uint32_t micro_batch, std::uint32_t layer) {
  const Layer view = logits_alone(logits, 4);
  const NoiseKey key = make_key(seed, step, micro_batch, layer);
  nb::gil_scoped_release released;
  kernels().sample_update(view, key, rate, logits.data());
}

// (changed groups, summed sharpness); `codes` is written.
std::tuple<std::int64_t, double> decide(const Logits& logits, const Codes& codes,
                                        const Codes& compare, float scale) {
  positive(scale, "the logits' scale");
  const std::size_t planes = logits.shape(1);
  if (planes != 6 && planes != 4) refuse("the logits must have 6 or 4 planes");
  const Layer view = logits_alone(logits, planes);
  for (const Codes* c : {&codes, &compare}) {
    if (c->shape(0) != logits.shape(0) || c->shape(1) != logits.shape(2)) {
      refuse("the codes must be (rows, groups)");
    }
  }
  Decision decision{codes.data(), compare.data(), 0, 0.0};
  {
    nb::gil_scoped_release released;
    if (planes == 6) {
      kernels().decide_placements(view, scale, decision);
    } else {
      kernels().decide_weights(view, scale, decision);
    }
  }
  return {decision.changed, decision.sharpness};
}

void fake_quantise(const Floats2d& weight, const Codes& keep, const Floats2d& out, int block,
                   bool int4, bool minima) {
  for (std::size_t i = 0; i < 2; ++i) {
    if (keep.shape(i) != weight.shape(i) || out.shape(i) != weight.shape(i)) {
      refuse("what is kept and what is written must have the weight's shape");
    }
  }
  if (block < 1) refuse("a block must have at least one weight");
  if (minima && !int4) refuse("int8 has no minima");
  const auto rows = static_cast<std::int64_t>(weight.shape(0));
  const auto columns = static_cast<std::int64_t>(weight.shape(1));
  nb::gil_scoped_release released;
  kernels().fake_quantise(weight.data(), keep.data(), rows, columns, {block, int4, minima},
                          out.data());
}

// Scores, slopes and gradients have the type of logits: three dimensions of float32.
void order_gradient(const Logits& scores, const Logits& slopes, const Places& places,
                    const Logits& found, int n, int m) {
  const std::size_t blocks = scores.shape(0), size = scores.shape(2);
  for (std::size_t i = 0; i < 3; ++i) {
    if (slopes.shape(i) != scores.shape(i)) refuse("the slopes must have the scores' shape");
  }
  if (places.shape(0) != blocks || places.shape(1) != size) {
    refuse("the places must be (blocks, size)");
  }
  if (found.shape(0) != blocks || found.shape(1) != size || found.shape(2) != size) {
    refuse("what is found must be (blocks, size, size)");
  }
  if (n < 1 || m <= n || size % static_cast<std::size_t>(m) != 0) {
    refuse("groups of m must divide a block, and n be at least 1 and below m");
  }
  if (size > static_cast<std::size_t>(largest_block)) {
    refuse("a block has at most " + std::to_string(largest_block) + " channels");
  }
  for (std::size_t i = 0; i < blocks * size; ++i) {
    const std::int64_t channel = places.data()[i];
    if (channel < 0 || channel >= static_cast<std::int64_t>(size)) {
      refuse("a place holds a channel that the block has not");
    }
  }
  const Blocks view{scores.data(),
                    slopes.data(),
                    places.data(),
                    static_cast<std::int64_t>(blocks),
                    static_cast<std::int64_t>(scores.shape(1)),
                    static_cast<std::int64_t>(size)};
  nb::gil_scoped_release released;
  kernels().order_gradient(view, {n, m}, found.data());
}

Norm make_norm(const Weight& x, const Vector& weight, const Weight& out, const Scales& scales) {
  if (x.shape(1) % lanes != 0) refuse("rows must divide by " + std::to_string(lanes));
  if (weight.shape(0) != x.shape(1) || weight.dtype() != x.dtype()) {
    refuse("the norm's weight must have the size and type of a row");
  }
  same_as_weight(x, out, "what is written");
  if (scales.shape(0) != x.shape(0)) refuse("there must be a scale for every row");
  return {x.data(), weight.data(), static_cast<std::int64_t>(x.shape(0)),
          static_cast<std::int64_t>(x.shape(1)), is_bf16(x)};
}

void rms_norm(const Weight& x, const Vector& weight, float epsilon, const Weight& out,
              const Scales& scales) {
  const Norm norm = make_norm(x, weight, out, scales);
  nb::gil_scoped_release released;
  kernels().rms_norm(norm, epsilon, out.data(), scales.data());
}

void rms_norm_gradient(const Weight& x, const Vector& weight, const Scales& scales,
                       const Weight& gradient, const Weight& out) {
  const Norm norm = make_norm(x, weight, out, scales);
  same_as_weight(x, gradient, "the gradient");
  nb::gil_scoped_release released;
  kernels().rms_norm_gradient(norm, scales.data(), gradient.data(), out.data());
}

void sampled_products(const Weight& gradient, const Weight& inputs, const Numbers& numbers,
                      const Floats2d& out) {
  const std::size_t rows = gradient.shape(1), columns = inputs.shape(1), m = out.shape(1);
  if (inputs.shape(0) != gradient.shape(0) || inputs.dtype() != gradient.dtype()) {
    refuse("the inputs must have the gradient's tokens and type");
  }
  if (m < 4 || m % 4 != 0 || columns % m != 0)
    refuse("groups of a multiple of 4 must divide inputs");
  if (out.shape(0) != numbers.shape(0)) refuse("there must be a row of products for every group");
  Sampled all{gradient.data(),
              inputs.data(),
              numbers.data(),
              static_cast<std::int64_t>(gradient.shape(0)),
              static_cast<std::int64_t>(rows),
              static_cast<std::int64_t>(columns / m),
              static_cast<std::int64_t>(numbers.shape(0)),
              static_cast<int>(m),
              is_bf16(gradient),
              nullptr};
  for (std::int64_t i = 0; i < all.count; ++i) {
    if (all.numbers[i] < 0 || all.numbers[i] >= all.rows * all.groups) {
      refuse("a group's number is beyond the layer");
    }
  }
  const std::size_t bytes = all.is_bf16 ? 2 : 4;
  const auto scratch = std::make_unique<std::byte[]>((rows + columns) * sddmm_tokens * bytes);
  all.scratch = scratch.get();
  nb::gil_scoped_release released;
  kernels().sampled_products(all, out.data());
}

// (text, divergence), sums over positions.
std::tuple<double, double> next_token_loss(const Weight& logits, const Numbers& targets,
                                           const std::optional<Weight>& teacher, float share,
                                           float scale, const std::optional<Weight>& gradient) {
  const Predictions all{logits.data(),
                        teacher ? teacher->data() : nullptr,
                        targets.data(),
                        static_cast<std::int64_t>(logits.shape(0)),
                        static_cast<std::int64_t>(logits.shape(1)),
                        share,
                        is_bf16(logits)};
  if (teacher) same_as_weight(logits, *teacher, "the teacher's logits");
  if (gradient) same_as_weight(logits, *gradient, "the gradient");
  if (targets.shape(0) != logits.shape(0)) refuse("there must be a target for every position");
  for (std::int64_t i = 0; i < all.positions; ++i) {
    if (all.targets[i] >= all.vocabulary) refuse("a target is beyond the vocabulary");
  }
  nb::gil_scoped_release released;
  const Losses found = kernels().next_token_loss(all, scale, gradient ? gradient->data() : nullptr);
  return {found.text, found.divergence};
}

}  // namespace

// Every kernel draws its noise from the key (seed, step, micro_batch, layer).
#define TWOFOUR_KEY "seed"_a, "step"_a, "micro_batch"_a, "layer"_a

NB_MODULE(_native, m) {
  m.doc() =
      "Fused kernels for learning masks, 2:4 where nothing else is said;\n"
      "maskgen/learning/native.py chooses them.\n\n"
      "Weights, masked weights and their gradients are (rows, inputs), all bfloat16 or all "
      "float32;\n"
      "logits and their gradients (rows, 6 or 4, inputs / 4) float32; codes (rows, inputs / 4).\n"
      "ValueError where they do not fit together.";
  m.def(
      "isa", [] { return kernels().name; },
      "The instruction set of this process; ValueError for a bad TWOFOUR_ISA.");
  m.def("gumbel_forward", &relax_forward<&Kernels::gumbel_forward, 6>, "weight"_a.noconvert(),
        "logits"_a.noconvert(), "masked"_a.noconvert(), "scale"_a, "tau"_a, TWOFOUR_KEY,
        "Writes `masked` by MaskLLM's relaxation.");
  m.def("gumbel_backward", &relax_backward<&Kernels::gumbel_backward, 6>, "weight"_a.noconvert(),
        "logits"_a.noconvert(), "masked_gradient"_a.noconvert(), "gradient"_a.noconvert(),
        "scale"_a, "tau"_a, "regularisation"_a, TWOFOUR_KEY,
        "Adds to the logits' `gradient` what the masked weight's gives.");
  m.def("topk_forward", &relax_forward<&Kernels::topk_forward, 4>, "weight"_a.noconvert(),
        "logits"_a.noconvert(), "masked"_a.noconvert(), "scale"_a, "tau"_a, TWOFOUR_KEY,
        "Writes `masked` by RoI's relaxation.");
  m.def("topk_backward", &relax_backward<&Kernels::topk_backward, 4>, "weight"_a.noconvert(),
        "logits"_a.noconvert(), "masked_gradient"_a.noconvert(), "gradient"_a.noconvert(),
        "scale"_a, "tau"_a, "regularisation"_a, TWOFOUR_KEY,
        "Adds to the logits' `gradient` what the masked weight's gives.");
  m.def("entropic_forward", &entropic_forward, "weight"_a.noconvert(), "logits"_a.noconvert(),
        "masked"_a.noconvert(), "n"_a, "scale"_a, "tau"_a, TWOFOUR_KEY,
        "Writes `masked` by the entropic top n of each group of as many weights as there are "
        "planes of logits.");
  m.def("entropic_backward", &entropic_backward, "weight"_a.noconvert(), "logits"_a.noconvert(),
        "masked_gradient"_a.noconvert(), "gradient"_a.noconvert(), "n"_a, "scale"_a, "tau"_a,
        "regularisation"_a, TWOFOUR_KEY,
        "Adds to the logits' `gradient` what the masked weight's gives.");
  m.def("keep_top", &keep_top, "logits"_a.noconvert(), "kept"_a.noconvert(), "n"_a,
        "Writes 1 to `kept`, (rows, inputs), for the n largest of each group, else 0.");
  m.def("sample_forward", &sample_forward, "weight"_a.noconvert(), "logits"_a.noconvert(),
        "masked"_a.noconvert(), TWOFOUR_KEY, "Writes `masked` by MaskPro's sampling.");
  m.def("sample_update", &sample_update, "logits"_a.noconvert(), "rate"_a, TWOFOUR_KEY,
        "Adds to the logits `rate` times the gradient of the sample's log-probability.");
  m.def("decide", &decide, "logits"_a.noconvert(), "codes"_a.noconvert(), "compare"_a.noconvert(),
        "scale"_a,
        "Writes the best `codes`; (how many are not those of `compare`, summed sharpness).");
  m.def("fake_quantise", &fake_quantise, "weight"_a.noconvert(), "keep"_a.noconvert(),
        "out"_a.noconvert(), "block"_a, "int4"_a, "minima"_a,
        "Writes the kept weights' nearest values on the grid of their block, 0 for the others; all "
        "(rows, inputs).");
  m.def("order_gradient", &order_gradient, "scores"_a.noconvert(), "slopes"_a.noconvert(),
        "places"_a.noconvert(), "found"_a.noconvert(), "n"_a, "m"_a,
        "Writes to `found`, (blocks, size, size), what the loss changes by when a channel stands "
        "at a place, summed over the rows of `scores` and `slopes`, (blocks, rows, size); `places` "
        "has the channels in their present order, (blocks, size).");
  m.def("rms_norm", &rms_norm, "x"_a.noconvert(), "weight"_a.noconvert(), "epsilon"_a,
        "out"_a.noconvert(), "scales"_a.noconvert(),
        "Writes to `out` the rows of `x`, (rows, size), over their root mean square and times "
        "`weight`, (size); to `scales`, (rows), what they were multiplied by.");
  m.def("rms_norm_gradient", &rms_norm_gradient, "x"_a.noconvert(), "weight"_a.noconvert(),
        "scales"_a.noconvert(), "gradient"_a.noconvert(), "out"_a.noconvert(),
        "Writes to `out` the gradient of `x`, given that of what `rms_norm` wrote.");
  m.def(
      "sampled_products", &sampled_products, "gradient"_a.noconvert(), "inputs"_a.noconvert(),
      "numbers"_a.noconvert(), "out"_a.noconvert(),
      "Adds to `out`, (groups, m), those entries of gradient^T inputs that belong to the groups "
      "of these `numbers` (row by row). `gradient` is (tokens, rows), `inputs` (tokens, inputs).");
  m.def("next_token_loss", &next_token_loss, "logits"_a.noconvert(), "targets"_a.noconvert(),
        "teacher"_a.noconvert().none(), "share"_a, "scale"_a, "gradient"_a.noconvert().none(),
        "Loss of the next tokens and divergence from the teacher, each summed over the positions "
        "whose target is not negative; `gradient` becomes `scale` times that of (1 - share) * loss "
        "+ share * divergence. Logits, teacher and gradient are (positions, vocabulary).");
}
