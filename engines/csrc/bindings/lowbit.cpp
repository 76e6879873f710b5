// Python's view of packing int8 and int4 weights; engines/native/lowbit.py gives it types and
// errors. fp16 crosses as uint16.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <optional>
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
}

}  // namespace twofour::python
