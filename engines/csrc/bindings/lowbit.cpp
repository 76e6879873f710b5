// Python's view of packing int8 and int4 weights; engines/native/lowbit.py gives it types and
// errors. fp16 crosses as uint16.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <string>
#include <tuple>

#include "bindings/arrays.h"
#include "kernels/lowbit/team.h"

namespace twofour::python {

using namespace nb::literals;

namespace {

using Answer = std::tuple<int, std::size_t, std::size_t, std::uint32_t>;
template <class T>
using Optional = std::optional<Array<T, 2>>;

Answer answer(const lowbit::Finding& found) {
  return {static_cast<int>(found.fault), found.row, found.input, found.value};
}

bool sparse(const Weights& w) { return lowbit::places_of(w.layout) != lowbit::Places::all; }

void require_lowbit(const Weights& w) {
  require(is_lowbit(w.layout), "the layer's values are bf16");
}

// The arrays of one layer: all there that its layout has, and no others.
template <class Value, class Scale, class Word>
lowbit::Rows<Value, Scale, Word> rows_of(const Weights& w, const Array<Value, 2>& values,
                                         const Array<Scale, 2>& scales,
                                         const Optional<Value>& minima,
                                         const Optional<Word>& kept) {
  const std::size_t blocks = lowbit::block_count(w.k, w.block), tiles = input_tiles(w.k);
  require(values.shape(0) == w.n && values.shape(1) == w.k, "the values must be n x k");
  require(scales.shape(0) == w.n && scales.shape(1) == blocks, "the scales must be n x blocks");
  require(minima.has_value() == w.minima &&
              (!minima || (minima->shape(0) == w.n && minima->shape(1) == blocks)),
          "the minima must be n x blocks, or none");
  require(kept.has_value() == sparse(w) &&
              (!kept || (kept->shape(0) == w.n && kept->shape(1) == tiles)),
          "what is kept must be n x tiles, or none for a dense layout");
  return {values.data(), scales.data(), minima ? minima->data() : nullptr,
          kept ? kept->data() : nullptr};
}

Answer pack(std::uint32_t layout, std::size_t block, Array<const std::int8_t, 2> values,
            Array<const std::uint16_t, 2> scales, Optional<const std::int8_t> minima,
            Optional<const std::uint32_t> kept, Array<std::uint8_t, 1> packed, int threads) {
  const PackedLayer checked(layout, values.shape(0), values.shape(1), Bytes(packed), block,
                            minima.has_value());
  const Weights& w = checked.weights;
  require_lowbit(w);
  const lowbit::Source from = rows_of<const std::int8_t, const std::uint16_t, const std::uint32_t>(
      w, values, scales, minima, kept);
  auto* to = reinterpret_cast<std::byte*>(packed.data());
  nb::gil_scoped_release release;
  return answer(lowbit::pack_team(w, from, to, threads));
}

void unpack(const PackedLayer& layer, Array<std::int8_t, 2> values, Array<std::uint16_t, 2> scales,
            Optional<std::int8_t> minima, Optional<std::uint32_t> kept, int threads) {
  const Weights& w = layer.weights;
  require_lowbit(w);
  const lowbit::Target to =
      rows_of<std::int8_t, std::uint16_t, std::uint32_t>(w, values, scales, minima, kept);
  nb::gil_scoped_release release;
  require(lowbit::check_team(w, threads).fault == lowbit::Fault::none,
          "packed weights are malformed");
  lowbit::unpack_team(w, to, threads);
}

Answer check(const PackedLayer& layer, int threads) {
  require_lowbit(layer.weights);
  nb::gil_scoped_release release;
  return answer(lowbit::check_team(layer.weights, threads));
}

void require_fit(const PatchArrays& arrays, const Weights& w) {
  require_lowbit(w);
  require(lowbit::places_of(w.layout) == lowbit::Places::pairs,
          "patches change 2:4 layouts, not bitmaps and dense ones");
  require(arrays.values.has_value(), "the patch's values are bf16");
  require(arrays.patch.n == w.n && arrays.patch.k == w.k, "the patch has another shape");
}

bool patch_apply(const PatchArrays& arrays, std::uint32_t layout, std::size_t block, bool minima,
                 Array<std::uint8_t, 1> packed, bool revert, int threads) {
  const Patch& patch = arrays.patch;
  const PackedLayer checked(layout, patch.n, patch.k, Bytes(packed), block, minima);
  require_fit(arrays, checked.weights);
  auto* to = reinterpret_cast<std::byte*>(packed.data());
  nb::gil_scoped_release release;
  return lowbit::patch_apply_team(checked.weights, patch, to, revert, threads);
}

void patch_add(const PatchArrays& arrays, const PackedLayer& layer, Array<const float, 2> x,
               Array<const std::uint32_t, 1> which, Array<float, 2> y, int threads,
               std::optional<std::string> isa) {
  const Weights& w = layer.weights;
  require_fit(arrays, w);
  require(x.shape(1) == w.k, "the activations have another number of inputs than the weights");
  require(y.shape(0) == x.shape(0) && y.shape(1) == w.n, "the output must be tokens x n");
  for (std::size_t i = 0; i < which.size(); ++i) {
    require(which(i) < x.shape(0), "token " + std::to_string(which(i)) + " is beyond the batch");
  }
  const lowbit::Kernels& kernels = lowbit::kernels_for(isa ? isa_from_name(*isa) : active_isa());
  const Input in{x.data(), false, w.k, x.shape(0)};
  nb::gil_scoped_release release;
  lowbit::patch_add_team(kernels, w, arrays.patch, in, which.data(), which.size(), y.data(), w.n,
                         threads);
}

}  // namespace

void bind_lowbit(nb::module_& m) {
  m.attr("LOWBIT_LAYOUT_VERSION") = lowbit::layout_version;
  m.def("lowbit_pack", pack, "layout"_a, "block"_a, "values"_a.noconvert(), "scales"_a.noconvert(),
        "minima"_a.none().noconvert(), "kept"_a.none().noconvert(), "packed"_a.noconvert(),
        "threads"_a,
        "Packs (n, k) int8 values or int4 levels; (fault, row, input, value), fault 0 for none.");
  m.def("lowbit_unpack", unpack, "layer"_a, "values"_a.noconvert(), "scales"_a.noconvert(),
        "minima"_a.none().noconvert(), "kept"_a.none().noconvert(), "threads"_a,
        "The inverse of `lowbit_pack`; values that are not kept are 0.");
  m.def("lowbit_check", check, "layer"_a, "threads"_a,
        "(fault, row, input, value): 0 none, 1 places, 2 value, 3 scale, 4 minimum, 5 padding.");
  m.def("lowbit_patch_apply", patch_apply, "patch"_a, "layout"_a, "block"_a, "minima"_a,
        "packed"_a.noconvert(), "revert"_a, "threads"_a,
        "Rewrites packed weights; False, and nothing changed, if they hold another mask.");
  m.def("lowbit_patch_add", patch_add, "patch"_a, "layer"_a, "x"_a.noconvert(),
        "which"_a.noconvert(), "y"_a.noconvert(), "threads"_a, "isa"_a.none(),
        "Adds the patch's product to the rows `which` of y; `layer`: the base weights.");
}

}  // namespace twofour::python
