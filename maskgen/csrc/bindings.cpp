// The Python edge of the kernels that compute masks, and the module: checks every array, releases
// the GIL, calls the chosen kernel.
#include "arrays.h"

using namespace twofour::learning;

namespace {

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
  define_step_kernels(m);
}
