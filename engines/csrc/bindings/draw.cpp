// Python's view of drawing tokens; engines/decoding/sampler.py says what the rules are.
#include "decoder/draw.h"

#include <nanobind/nanobind.h>

#include "bindings/arrays.h"

namespace twofour::python {

using namespace nb::literals;

namespace {

std::size_t draw_one(const Vector& logits, float temperature, std::int64_t top_k, double top_p,
                     float min_p, double uniform) {
  require(logits.size() > 0, "there are no logits to draw from");
  require(temperature > 0.0f, "the temperature must be above 0");
  require(uniform >= 0.0 && uniform < 1.0, "a quantile lies in [0, 1)");
  const DecoderOps& ops = decoder_ops(active_isa());
  nb::gil_scoped_release released;
  return draw(ops, logits.data(), logits.size(), {temperature, top_k, top_p, min_p}, uniform);
}

}  // namespace

void bind_draw(nb::module_& m) {
  m.def("draw", draw_one, "logits"_a.noconvert(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
        "uniform"_a,
        "The token at a quantile of the distribution that temperature, min-p, top-k and top-p "
        "leave, in this order. (vocabulary,) logits, the largest finite.");
}

}  // namespace twofour::python
