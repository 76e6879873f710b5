#include "bindings/arrays.h"

#include <utility>

#include "kernels/lowbit/layout.h"

namespace twofour::python {

using namespace nb::literals;

Layout layout_of(std::uint32_t number) {
  require(number >= 1 && number <= static_cast<std::uint32_t>(Layout::bitmap32_int4),
          "layout " + std::to_string(number) + " is unknown (known: 1 to 8)");
  return static_cast<Layout>(number);
}

std::size_t bytes_of(std::uint32_t layout, std::size_t n, std::size_t k, std::size_t block,
                     bool minima) {
  const Layout id = layout_of(layout);
  require(n > 0 && k > 0 && n < (1u << 31) && k < (1u << 31),
          "a layer of " + std::to_string(n) + " x " + std::to_string(k) + " is not possible");
  const bool dense =
      id == Layout::dense_bf16 || (is_lowbit(id) && lowbit::places_of(id) == lowbit::Places::all);
  require(dense || k % 4 == 0,
          "a sparse layer's width must be a multiple of 4, not " + std::to_string(k));
  if (!is_lowbit(id)) {
    require(block == 0 && !minima, "layouts of bf16 have no blocks and no minima");
    return packed_bytes(id, n, k);
  }
  require(block == 32 || block == 64 || block == 128,
          "a scale is shared by 32, 64 or 128 inputs, not " + std::to_string(block));
  require(!minima || lowbit::is_int4(id), "only int4 layouts have minima");
  return lowbit::packed_bytes(id, n, k, block, minima);
}

Weights weights_of(std::uint32_t layout, std::size_t n, std::size_t k, const std::uint8_t* data,
                   std::size_t bytes, std::size_t block, bool minima) {
  const std::size_t expected = bytes_of(layout, n, k, block, minima);
  require(bytes == expected, "packed weights of " + std::to_string(n) + " x " + std::to_string(k) +
                                 " take " + std::to_string(expected) + " bytes, not " +
                                 std::to_string(bytes));
  return {layout_of(layout), n, k, reinterpret_cast<const std::byte*>(data), block, minima};
}

PackedLayer::PackedLayer(std::uint32_t layout, std::size_t n, std::size_t k, Bytes bytes,
                         std::size_t block, bool minima)
    : data(std::move(bytes)),
      weights(weights_of(layout, n, k, data.data(), data.size(), block, minima)) {}

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
      .def(nb::init<std::uint32_t, std::size_t, std::size_t, Bytes, std::size_t, bool>(),
           "layout"_a, "n"_a, "k"_a, "data"_a.noconvert(), "block"_a = 0, "minima"_a = false);
  nb::class_<PatchArrays>(m, "PatchArrays",
                          "The native side of an `engines.native.patch.Patch`; shares its arrays.")
      .def(nb::init<std::size_t, std::size_t, Array<const std::uint32_t, 1>,
                    Array<const std::uint32_t, 1>, Bytes, Array<const std::uint16_t, 2>>(),
           "n"_a, "k"_a, "row_start"_a.noconvert(), "group"_a.noconvert(), "codes"_a.noconvert(),
           "delta"_a.noconvert());
}

}  // namespace twofour::python
