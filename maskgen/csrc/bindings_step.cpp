// The Python edge of the other kernels of a learning step: losses, norms, gradients, rounding.
#include <nanobind/stl/optional.h>

#include <memory>
#include <optional>

#include "arrays.h"
#include "common/lanes.h"

namespace twofour::learning {
namespace {

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

void define_step_kernels(nb::module_& m) {
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

}  // namespace twofour::learning
