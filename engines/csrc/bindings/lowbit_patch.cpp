// Python's view of patches of int8 and int4 values; engines/native/lowbit_patch.py gives it types
// and errors.
#include "bindings/lowbit_patch.h"

#include <nanobind/stl/optional.h>

#include <utility>
#include <vector>

#include "kernels/lowbit/layout.h"

namespace twofour::python {

using namespace nb::literals;

LowbitPatchArrays::LowbitPatchArrays(std::size_t n, std::size_t k,
                                     Array<const std::uint32_t, 1> starts,
                                     Array<const std::uint32_t, 1> places,
                                     Array<const std::int8_t, 1> values)
    : row_start(std::move(starts)),
      place(std::move(places)),
      value(std::move(values)),
      patch{n, k, row_start.data(), place.data(), value.data()} {
  const std::size_t count = place.size();
  require(k < patch_removes, "a layer of " + std::to_string(k) + " inputs is not possible");
  require(row_start.size() == n + 1 && value.size() == count,
          "the patch's arrays do not fit together");
  require(patch.row_start[0] == 0 && patch.row_start[n] == count,
          "the patch's rows do not cover its places");
  bool rows_rise = true, places_rise = true, inside = true, numbers = true;
  for (std::size_t row = 0; row < n; ++row) {
    rows_rise &= patch.row_start[row] <= patch.row_start[row + 1];
  }
  require(rows_rise, "the patch's rows do not rise");
  for (std::size_t row = 0; row < n; ++row) {
    for (std::uint32_t e = patch.row_start[row] + 1; e < patch.row_start[row + 1]; ++e) {
      places_rise &= (patch.place[e - 1] & ~patch_removes) < (patch.place[e] & ~patch_removes);
    }
  }
  for (std::size_t e = 0; e < count; ++e) {
    inside &= (patch.place[e] & ~patch_removes) < k;
    numbers &= patch.value[e] != -128;
  }
  require(places_rise, "the patch's places do not rise");
  require(inside, "the patch names an input beyond the layer's width");
  require(numbers, "the patch holds the value -128, which is none");
}

namespace {

bool apply(const LowbitPatchArrays& arrays, std::uint32_t layout, std::size_t block, bool minima,
           Array<std::uint8_t, 1> packed, bool revert, int threads) {
  const LowbitPatch& patch = arrays.patch;
  const PackedLayer layer(layout, patch.n, patch.k, Bytes(packed), block, minima);
  require(is_lowbit(layer.weights.layout) &&
              lowbit::places_of(layer.weights.layout) != lowbit::Places::all,
          "the layer is not sparse, of int8 or int4 values");
  auto* to = reinterpret_cast<std::byte*>(packed.data());
  nb::gil_scoped_release release;
  return apply_patch(patch, layer.weights, to, revert, threads);
}

void add_product(const LowbitPatchArrays& arrays, const PackedLayer& base, Array<const float, 2> x,
                 Array<const std::uint32_t, 1> which, Array<float, 2> y) {
  const LowbitPatch& patch = arrays.patch;
  const Weights& w = base.weights;
  require(is_lowbit(w.layout) && w.n == patch.n && w.k == patch.k,
          "the patch is for a layer of int8 or int4 values of its own shape");
  const std::size_t tokens = x.shape(0), blocks = lowbit::block_count(w.k, w.block);
  require(x.shape(1) == w.k, "activations of another width");
  require(y.shape(0) == tokens && y.shape(1) == w.n, "the output must be tokens x n");
  for (std::size_t i = 0; i < which.size(); ++i) {
    require(which(i) < tokens, "token " + std::to_string(which(i)) + " is beyond the batch");
  }
  nb::gil_scoped_release release;
  std::vector<std::int8_t> values(tokens * w.k);
  std::vector<float> scales(tokens * blocks);
  for (std::size_t t = 0; t < tokens; ++t) {
    quantise_row(x.data() + t * w.k, w.k, w.block, values.data() + t * w.k,
                 scales.data() + t * blocks);
  }
  add_patch(patch, w, {values.data(), scales.data()}, which.data(), which.size(), y.data(), w.n, 0,
            row_blocks(w.n));
}

}  // namespace

void bind_lowbit_patch(nb::module_& m) {
  nb::class_<LowbitPatchArrays>(
      m, "LowbitPatchArrays",
      "The native side of an `engines.native.lowbit_patch.LowbitPatch`; shares its arrays.")
      .def(nb::init<std::size_t, std::size_t, Array<const std::uint32_t, 1>,
                    Array<const std::uint32_t, 1>, Array<const std::int8_t, 1>>(),
           "n"_a, "k"_a, "row_start"_a.noconvert(), "place"_a.noconvert(), "value"_a.noconvert());
  m.def("lowbit_patch_apply", apply, "patch"_a, "layout"_a, "block"_a, "minima"_a,
        "packed"_a.noconvert(), "revert"_a, "threads"_a,
        "Rewrites packed weights; False, and nothing changed, if they hold another mask.");
  m.def("lowbit_patch_add", add_product, "patch"_a, "base"_a, "x"_a.noconvert(),
        "which"_a.noconvert(), "y"_a.noconvert(),
        "Adds the patch's product to the rows `which` of y; `base` has the scales.");
}

}  // namespace twofour::python
