// Python's view of the kernels; engines/native/kernels.py, layout.py and patch.py give it types and
// errors.
#include "kernels/kernels.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>

#include "bindings/arrays.h"
#include "kernels/lowbit/team.h"
#include "kernels/team.h"

namespace twofour::python {

using namespace nb::literals;

namespace {

// float32, or bf16 as uint16.
using AnyInput = nb::ndarray<nb::numpy, nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using AnyOutput = nb::ndarray<nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using IsaName = std::optional<std::string>;

Isa chosen(const IsaName& isa) { return isa ? isa_from_name(*isa) : active_isa(); }
const Kernels& table(const IsaName& isa) { return kernels_for(chosen(isa)); }

void require_bf16(const PackedLayer& layer) {
  require(!is_lowbit(layer.weights.layout), "the layer's values are not bf16");
}

template <class Any>
bool is_bf16(const Any& array, const char* what) {
  const bool bf16 = array.dtype() == nb::dtype<std::uint16_t>();
  require(bf16 || array.dtype() == nb::dtype<float>(),
          std::string(what) + " must be bf16 (as uint16) or float32");
  return bf16;
}

Input input(const AnyInput& x, std::size_t k) {
  const bool bf16 = is_bf16(x, "activations");
  require(x.shape(1) == k, "activations have " + std::to_string(x.shape(1)) +
                               " inputs, the weights " + std::to_string(k));
  return {x.data(), bf16, k, x.shape(0)};
}

Output output(const AnyOutput& y, std::size_t tokens, std::size_t n, bool add,
              const std::optional<Vector>& bias) {
  require(y.shape(0) == tokens && y.shape(1) == n,
          "the output must be " + std::to_string(tokens) + " x " + std::to_string(n));
  const bool bf16 = is_bf16(y, "the output");
  require(!(bf16 && add), "adding needs a float32 output");
  require(!bias || bias->size() == n, "the bias must have " + std::to_string(n) + " values");
  const auto kind = bf16 ? OutputKind::bf16 : (add ? OutputKind::f32_add : OutputKind::f32);
  return {kind, y.data(), n, bias ? bias->data() : nullptr};
}

void linear(const PackedLayer& layer, AnyInput x, AnyOutput y, std::optional<Vector> bias, bool add,
            int threads, IsaName isa) {
  const Weights& w = layer.weights;
  const Isa set = chosen(isa);
  const Input in = input(x, w.k);
  const Output out = output(y, in.tokens, w.n, add, bias);
  nb::gil_scoped_release release;
  if (is_lowbit(w.layout)) {
    lowbit::linear_team(lowbit::kernels_for(set), w, in, out, threads);
  } else {
    linear_team(kernels_for(set), w, in, out, threads);
  }
}

void linear_at(std::uint32_t layout, std::size_t n, std::size_t k, std::uintptr_t data,
               std::size_t bytes, std::size_t block, bool minima, std::uintptr_t x,
               std::uintptr_t y, bool is_bf16, std::size_t tokens, std::uintptr_t bias,
               int threads) {
  const auto* packed = reinterpret_cast<const std::uint8_t*>(data);
  const Weights w = weights_of(layout, n, k, packed, bytes, block, minima);
  const Input in{reinterpret_cast<const void*>(x), is_bf16, k, tokens};
  const auto kind = is_bf16 ? OutputKind::bf16 : OutputKind::f32;
  const Output out{kind, reinterpret_cast<void*>(y), n, reinterpret_cast<const float*>(bias)};
  nb::gil_scoped_release release;
  if (is_lowbit(w.layout)) {
    lowbit::linear_team(lowbit::kernels_for(active_isa()), w, in, out, threads);
  } else {
    linear_team(active_kernels(), w, in, out, threads);
  }
}

void gated(const PackedLayer& gate, const PackedLayer& up, AnyInput x, AnyOutput y, int threads,
           IsaName isa) {
  const Isa set = chosen(isa);
  const Weights &first = gate.weights, &second = up.weights;
  require(first.layout == second.layout && first.n == second.n && first.k == second.k &&
              first.block == second.block && first.minima == second.minima,
          "gate and up must have one layout and shape");
  const Input in = input(x, first.k);
  const Output out = output(y, in.tokens, first.n, false, std::nullopt);
  nb::gil_scoped_release release;
  if (is_lowbit(first.layout)) {
    lowbit::gated_team(lowbit::kernels_for(set), first, second, in, out, threads);
  } else {
    gated_team(kernels_for(set), first, second, in, out, threads);
  }
}

bool pack(std::uint32_t layout, Array<const std::uint16_t, 2> dense,
          std::optional<Array<const std::uint8_t, 2>> codes, Array<std::uint8_t, 1> packed,
          int threads) {
  const std::size_t n = dense.shape(0), k = dense.shape(1);
  const PackedLayer checked(layout, n, k, Bytes(packed));
  auto* to = reinterpret_cast<std::byte*>(packed.data());
  if (checked.weights.layout == Layout::dense_bf16) {
    nb::gil_scoped_release release;
    pack_dense_team(dense.data(), k, n, k, to, threads);
    return true;
  }
  require(codes && codes->shape(0) == n && codes->shape(1) == k / 4, "the codes must be n x k/4");
  nb::gil_scoped_release release;
  return pack_sparse_team(dense.data(), k, codes->data(), n, k, to, threads);
}

void unpack(const PackedLayer& layer, Array<std::uint16_t, 2> dense,
            std::optional<Array<std::uint8_t, 2>> codes, int threads) {
  require_bf16(layer);
  const Weights& w = layer.weights;
  require(dense.shape(0) == w.n && dense.shape(1) == w.k, "the dense weights must be n x k");
  require(!codes || (codes->shape(0) == w.n && codes->shape(1) == w.k / 4),
          "the codes must be n x k/4");
  nb::gil_scoped_release release;
  require(check_team(w, threads).fault == Fault::none, "packed weights are malformed");
  unpack_team(w, dense.data(), w.k, codes ? codes->data() : nullptr, threads);
}

std::tuple<int, std::size_t, std::size_t, unsigned> check(const PackedLayer& layer, int threads) {
  require_bf16(layer);
  nb::gil_scoped_release release;
  const Finding found = check_team(layer.weights, threads);
  return {static_cast<int>(found.fault), found.row, found.group, found.value};
}

bool patch_apply(const PatchArrays& arrays, Array<std::uint8_t, 1> packed, bool revert,
                 int threads) {
  const Patch& patch = arrays.patch;
  const auto sparse = static_cast<std::uint32_t>(Layout::sparse24_bf16);
  const PackedLayer checked(sparse, patch.n, patch.k, Bytes(packed));
  auto* to = reinterpret_cast<std::byte*>(packed.data());
  nb::gil_scoped_release release;
  return patch_apply_team(patch, to, revert, threads);
}

void patch_add(const PatchArrays& arrays, AnyInput x, Array<const std::uint32_t, 1> which,
               Array<float, 2> y, int threads, IsaName isa) {
  const Kernels& kernels = table(isa);
  const Patch& patch = arrays.patch;
  const Input in = input(x, patch.k);
  require(y.shape(0) == in.tokens && y.shape(1) == patch.n, "the output must be tokens x n");
  for (std::size_t i = 0; i < which.size(); ++i) {
    require(which(i) < in.tokens, "token " + std::to_string(which(i)) + " is beyond the batch");
  }
  nb::gil_scoped_release release;
  patch_add_team(kernels, patch, in, which.data(), which.size(), y.data(), patch.n, threads);
}

std::uint64_t read(Bytes data, int threads, IsaName isa) {
  const Kernels& kernels = table(isa);
  const auto* from = reinterpret_cast<const std::byte*>(data.data());
  nb::gil_scoped_release release;
  return read_team(kernels, from, data.size(), threads);
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa isa : all_isas) {
    if (supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.attr("LAYOUT_VERSION") = layout_version;
  m.def(
      "isa", [] { return isa_name(active_isa()); },
      "The instruction set of this process; ValueError for a bad TWOFOUR_ISA.");
  m.def("supported_isas", supported_isas, "What this build and this machine have, slowest first.");
  m.def("packed_bytes", bytes_of, "layout"_a, "n"_a, "k"_a, "block"_a = 0, "minima"_a = false,
        "Bytes of an n x k layer.");
  m.def(
      "kernel_name",
      [](std::uint32_t layout, std::size_t tokens, const IsaName& isa) {
        const Layout id = layout_of(layout);
        return is_lowbit(id) ? lowbit::kernels_for(chosen(isa)).kernel_name(id)
                             : table(isa).kernel_name(id, tokens);
      },
      "layout"_a, "tokens"_a, "isa"_a.none(), "Which kernel multiplies `tokens` tokens.");
  m.def("linear", linear, "layer"_a, "x"_a.noconvert(), "y"_a.noconvert(),
        "bias"_a.none().noconvert(), "add"_a, "threads"_a, "isa"_a.none(),
        "y = x W^T (+ bias), or added to y.");
  // By position: naming thirteen arguments would cost more than it explains.
  m.def("linear_at", linear_at,
        "`linear` by address, (layout, n, k, data, bytes, block, minima, x, y, is_bf16, tokens,\n"
        "bias or 0, threads): making arrays of torch's tensors takes longer than a small product.\n"
        "The caller answers for x (tokens x k) and y (tokens x n), both bf16 or both float32, and\n"
        "the bias.");
  m.def("gated", gated, "gate"_a, "up"_a, "x"_a.noconvert(), "y"_a.noconvert(), "threads"_a,
        "isa"_a.none(), "y = silu(x gate^T) * (x up^T).");
  m.def("pack", pack, "layout"_a, "dense"_a.noconvert(), "codes"_a.none().noconvert(),
        "packed"_a.noconvert(), "threads"_a,
        "Packs (n, k) weights; False if a code is no placement.");
  m.def("unpack", unpack, "layer"_a, "dense"_a.noconvert(), "codes"_a.none().noconvert(),
        "threads"_a, "The inverse of `pack`, into (n, k) weights and (n, k / 4) codes.");
  m.def("check", check, "layer"_a, "threads"_a,
        "(fault, row, group, value): 0 none, 1 a code that is no placement, 2 padding not zero.");
  m.def("patch_apply", patch_apply, "patch"_a, "packed"_a.noconvert(), "revert"_a, "threads"_a,
        "Rewrites packed weights; False, and nothing changed, if they hold another mask.");
  m.def("patch_add", patch_add, "patch"_a, "x"_a.noconvert(), "which"_a.noconvert(),
        "y"_a.noconvert(), "threads"_a, "isa"_a.none(),
        "Adds the patch's product to the rows `which` of y.");
  m.def("read", read, "data"_a.noconvert(), "threads"_a, "isa"_a.none(),
        "Reads the bytes once; the result only keeps the loads alive.");
}

}  // namespace twofour::python
