#include "bindings/arrays.h"

#include <utility>

namespace twofour::python {

using namespace nb::literals;

Layout layout_of(std::uint32_t number) {
  require(number == 1 || number == 2,
          "layout " + std::to_string(number) + " is unknown (known: 1, 2)");
  return static_cast<Layout>(number);
}

Weights weights_of(std::uint32_t layout, std::size_t n, std::size_t k, const std::uint8_t* data,
                   std::size_t bytes) {
  const Layout id = layout_of(layout);
  const std::string shape = std::to_string(n) + " x " + std::to_string(k);
  require(n > 0 && k > 0 && n < (1u << 31) && k < (1u << 31),
          "a layer of " + shape + " is not possible");
  require(id == Layout::dense_bf16 || k % 4 == 0,
          "a 2:4 layer's width must be a multiple of 4, not " + std::to_string(k));
  const std::size_t expected = packed_bytes(id, n, k);
  require(bytes == expected, "packed weights of " + shape + " take " + std::to_string(expected) +
                                 " bytes, not " + std::to_string(bytes));
  return {id, n, k, reinterpret_cast<const std::byte*>(data)};
}

PackedLayer::PackedLayer(std::uint32_t layout, std::size_t n, std::size_t k, Bytes bytes)
    : data(std::move(bytes)), weights(weights_of(layout, n, k, data.data(), data.size())) {}

PatchArrays::PatchArrays(std::size_t n, std::size_t k, Array<const std::uint32_t, 1> starts,
                         Array<const std::uint32_t, 1> groups, Bytes both,
                         Array<const std::uint16_t, 2> differences)
    : row_start(std::move(starts)),
      group(std::move(groups)),
      codes(std::move(both)),
      delta(std::move(differences)),
      patch{n, k, row_start.data(), group.data(), codes.data(), delta.data()} {
  const std::size_t count = group.size();
  require(row_start.size() == n + 1 && codes.size() == count && delta.shape(0) == count &&
              delta.shape(1) == 4,
          "the patch's arrays do not fit together");
  require(patch.row_start[0] == 0 && patch.row_start[n] == count,
          "the patch's rows do not cover its groups");
  // By flags, without a branch in the loops: a patch has millions of groups.
  bool rising = true, inside = true, placements = true;
  for (std::size_t row = 0; row < n; ++row) {
    rising &= patch.row_start[row] <= patch.row_start[row + 1];
  }
  for (std::size_t i = 0; i < count; ++i) {
    inside &= patch.group[i] < k / 4;
    placements &=
        (patch.codes[i] & 15u) < placement_count && (patch.codes[i] >> 4) < placement_count;
  }
  require(rising, "the patch's rows do not rise");
  require(inside, "the patch names a group beyond the layer's width");
  require(placements, "the patch holds a code that is no placement");
}

void bind_arrays(nb::module_& m) {
  nb::class_<PackedLayer>(
      m, "PackedLayer",
      "The native side of an `engines.native.layout.PackedWeights`; shares its bytes.")
      .def(nb::init<std::uint32_t, std::size_t, std::size_t, Bytes>(), "layout"_a, "n"_a, "k"_a,
           "data"_a.noconvert());
  nb::class_<PatchArrays>(m, "PatchArrays",
                          "The native side of an `engines.native.patch.Patch`; shares its arrays.")
      .def(nb::init<std::size_t, std::size_t, Array<const std::uint32_t, 1>,
                    Array<const std::uint32_t, 1>, Bytes, Array<const std::uint16_t, 2>>(),
           "n"_a, "k"_a, "row_start"_a.noconvert(), "group"_a.noconvert(), "codes"_a.noconvert(),
           "delta"_a.noconvert());
}

}  // namespace twofour::python
