// Python's view of the kernels. bf16 crosses as uint16, because numpy has no bf16 of its own;
// shapes and values are checked here once more, since nothing behind this file checks them.
#include "kernels/kernels.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "kernels/team.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Bytes = Array<const std::uint8_t, 1>;
template <class T>
using Matrix = Array<T, 2>;
using Values = Array<const float, 1>;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

const twofour::Kernels& table(const std::optional<std::string>& isa) {
  if (!isa) return twofour::active_kernels();
  return twofour::kernels_for(twofour::isa_from_name(*isa));
}

twofour::Weights weights(std::uint32_t layout, std::size_t n, std::size_t k,
                         const std::uint8_t* data, std::size_t bytes) {
  require(layout == 1 || layout == 2,
          "layout " + std::to_string(layout) + " is unknown (known: 1, 2)");
  const auto id = static_cast<twofour::Layout>(layout);
  require(n > 0 && k > 0 && n < (1u << 31) && k < (1u << 31), "shape out of range");
  require(id == twofour::Layout::dense_bf16 || k % 4 == 0,
          "a 2:4 layer's width must be a multiple of 4, not " + std::to_string(k));
  const std::size_t expected = twofour::packed_bytes(id, n, k);
  require(bytes == expected, "packed weights of " + std::to_string(n) + " x " + std::to_string(k) +
                                 " take " + std::to_string(expected) + " bytes, not " +
                                 std::to_string(bytes));
  return {id, n, k, reinterpret_cast<const std::byte*>(data)};
}

twofour::Weights weights(std::uint32_t layout, std::size_t n, std::size_t k, const Bytes& data) {
  return weights(layout, n, k, data.data(), data.size());
}

// x is uint16 (bf16 bits) or float32, tokens x k.
twofour::Input input(const nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>& x,
                     std::size_t k) {
  const bool is_bf16 = x.dtype() == nb::dtype<std::uint16_t>();
  require(is_bf16 || x.dtype() == nb::dtype<float>(),
          "activations must be bf16 (as uint16) or float32");
  require(x.shape(1) == k, "activations have " + std::to_string(x.shape(1)) +
                               " inputs, the weights " + std::to_string(k));
  return {x.data(), is_bf16, k, x.shape(0)};
}

using AnyInput = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using AnyOutput = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

twofour::Output output(const AnyOutput& y, std::size_t tokens, std::size_t n, bool add,
                       const std::optional<Values>& bias) {
  require(y.shape(0) == tokens && y.shape(1) == n,
          "the output must be " + std::to_string(tokens) + " x " + std::to_string(n));
  const bool is_bf16 = y.dtype() == nb::dtype<std::uint16_t>();
  require(is_bf16 || y.dtype() == nb::dtype<float>(),
          "the output must be bf16 (as uint16) or float32");
  require(!(is_bf16 && add), "adding needs a float32 output");
  require(!bias || bias->size() == n, "the bias must have " + std::to_string(n) + " values");
  const auto kind = is_bf16 ? twofour::OutputKind::bf16
                            : (add ? twofour::OutputKind::f32_add : twofour::OutputKind::f32);
  return {kind, y.data(), n, bias ? bias->data() : nullptr};
}

twofour::Patch patch(std::size_t n, std::size_t k, const Array<const std::uint32_t, 1>& row_start,
                     const Array<const std::uint32_t, 1>& group,
                     const Array<const std::uint8_t, 1>& codes,
                     const Matrix<const std::uint16_t>& delta) {
  const std::size_t count = group.size();
  require(row_start.size() == n + 1 && codes.size() == count && delta.shape(0) == count &&
              delta.shape(1) == 4,
          "the patch's arrays do not fit together");
  require(row_start(0) == 0 && row_start(n) == count, "the patch's rows do not cover its groups");
  bool rising = true, inside = true, patterns = true;
  const std::uint32_t *starts = row_start.data(), *groups = group.data();
  const std::uint8_t* both = codes.data();
  for (std::size_t row = 0; row < n; ++row) rising &= starts[row] <= starts[row + 1];
  for (std::size_t i = 0; i < count; ++i) {
    inside &= groups[i] < k / 4;
    patterns &= (both[i] & 15u) < twofour::pattern_count && (both[i] >> 4) < twofour::pattern_count;
  }
  require(rising, "the patch's rows do not rise");
  require(inside, "the patch names a group beyond the layer's width");
  require(patterns, "the patch holds a code that is no pattern");
  return {n, k, row_start.data(), group.data(), codes.data(), delta.data()};
}

void linear(std::uint32_t layout, std::size_t n, std::size_t k, Bytes data, AnyInput x, AnyOutput y,
            std::optional<Values> bias, bool add, int threads, std::optional<std::string> isa) {
  const twofour::Kernels& kernels = table(isa);
  const twofour::Weights w = weights(layout, n, k, data);
  const twofour::Input in = input(x, k);
  const twofour::Output out = output(y, in.tokens, n, add, bias);
  nb::gil_scoped_release release;
  twofour::linear_team(kernels, w, in, out, threads);
}

// As `linear`, by address: making arrays of torch's tensors takes longer than a small product. The
// caller answers for x (tokens x k) and y (tokens x n), both bf16 or both float32, and bias (n
// float32, or 0).
void linear_at(std::uint32_t layout, std::size_t n, std::size_t k, std::uintptr_t data,
               std::size_t bytes, std::uintptr_t x, std::uintptr_t y, bool is_bf16,
               std::size_t tokens, std::uintptr_t bias, int threads) {
  const twofour::Weights w =
      weights(layout, n, k, reinterpret_cast<const std::uint8_t*>(data), bytes);
  const twofour::Input in{reinterpret_cast<const void*>(x), is_bf16, k, tokens};
  const auto kind = is_bf16 ? twofour::OutputKind::bf16 : twofour::OutputKind::f32;
  const twofour::Output out{kind, reinterpret_cast<void*>(y), n,
                            reinterpret_cast<const float*>(bias)};
  nb::gil_scoped_release release;
  twofour::linear_team(twofour::active_kernels(), w, in, out, threads);
}

void gated(std::uint32_t layout, std::size_t n, std::size_t k, Bytes gate, Bytes up, AnyInput x,
           AnyOutput y, int threads, std::optional<std::string> isa) {
  const twofour::Kernels& kernels = table(isa);
  const twofour::Weights first = weights(layout, n, k, gate), second = weights(layout, n, k, up);
  const twofour::Input in = input(x, k);
  const twofour::Output out = output(y, in.tokens, n, false, std::nullopt);
  nb::gil_scoped_release release;
  twofour::gated_team(kernels, first, second, in, out, threads);
}

bool pack(std::uint32_t layout, Matrix<const std::uint16_t> dense,
          std::optional<Matrix<const std::uint8_t>> codes, Array<std::uint8_t, 1> packed,
          int threads) {
  const std::size_t n = dense.shape(0), k = dense.shape(1);
  weights(layout, n, k, Bytes(packed));
  auto* to = reinterpret_cast<std::byte*>(packed.data());
  if (layout == 2) {
    nb::gil_scoped_release release;
    twofour::pack_dense_team(dense.data(), k, n, k, to, threads);
    return true;
  }
  require(codes && codes->shape(0) == n && codes->shape(1) == k / 4, "the codes must be n x k/4");
  nb::gil_scoped_release release;
  return twofour::pack_sparse_team(dense.data(), k, codes->data(), n, k, to, threads);
}

void unpack(std::uint32_t layout, Bytes packed, Matrix<std::uint16_t> dense,
            std::optional<Matrix<std::uint8_t>> codes, int threads) {
  const std::size_t n = dense.shape(0), k = dense.shape(1);
  const twofour::Weights w = weights(layout, n, k, packed);
  require(!codes || (codes->shape(0) == n && codes->shape(1) == k / 4),
          "the codes must be n x k/4");
  nb::gil_scoped_release release;
  if (twofour::check_team(w, threads).fault != twofour::Fault::none) {
    throw std::invalid_argument("packed weights are malformed");
  }
  twofour::unpack_team(w, dense.data(), k, codes ? codes->data() : nullptr, threads);
}

std::tuple<int, std::size_t, std::size_t, unsigned> check(std::uint32_t layout, std::size_t n,
                                                          std::size_t k, Bytes packed,
                                                          int threads) {
  const twofour::Weights w = weights(layout, n, k, packed);
  nb::gil_scoped_release release;
  const twofour::Finding found = twofour::check_team(w, threads);
  return {static_cast<int>(found.fault), found.row, found.group, found.value};
}

bool patch_apply(std::size_t n, std::size_t k, Array<const std::uint32_t, 1> row_start,
                 Array<const std::uint32_t, 1> group, Array<const std::uint8_t, 1> codes,
                 Matrix<const std::uint16_t> delta, Array<std::uint8_t, 1> packed, bool revert,
                 int threads) {
  const twofour::Patch p = patch(n, k, row_start, group, codes, delta);
  weights(1, n, k, Bytes(packed));
  auto* to = reinterpret_cast<std::byte*>(packed.data());
  nb::gil_scoped_release release;
  return twofour::patch_apply_team(p, to, revert, threads);
}

void patch_add(std::size_t n, std::size_t k, Array<const std::uint32_t, 1> row_start,
               Array<const std::uint32_t, 1> group, Array<const std::uint8_t, 1> codes,
               Matrix<const std::uint16_t> delta, AnyInput x, Array<const std::uint32_t, 1> which,
               Matrix<float> y, int threads, std::optional<std::string> isa) {
  const twofour::Kernels& kernels = table(isa);
  const twofour::Patch p = patch(n, k, row_start, group, codes, delta);
  const twofour::Input in = input(x, k);
  require(y.shape(0) == in.tokens && y.shape(1) == n, "the output must be tokens x n");
  for (std::size_t i = 0; i < which.size(); ++i) {
    require(which(i) < in.tokens, "token " + std::to_string(which(i)) + " is beyond the batch");
  }
  nb::gil_scoped_release release;
  twofour::patch_add_team(kernels, p, in, which.data(), which.size(), y.data(), n, threads);
}

std::uint64_t read_all(Bytes data, int threads, std::optional<std::string> isa) {
  const twofour::Kernels& kernels = table(isa);
  const auto* from = reinterpret_cast<const std::byte*>(data.data());
  nb::gil_scoped_release release;
  return twofour::read_team(kernels, from, data.size(), threads);
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const twofour::Isa isa : twofour::all_isas) {
    if (twofour::supported(isa)) names.emplace_back(twofour::isa_name(isa));
  }
  return names;
}

}  // namespace

void bind_kernels(nb::module_ m) {
  m.attr("LAYOUT_VERSION") = twofour::layout_version;
  m.def("isa", [] { return std::string(twofour::isa_name(twofour::active_isa())); });
  m.def("supported_isas", supported_isas);
  m.def("packed_bytes", [](std::uint32_t layout, std::size_t n, std::size_t k) {
    require(layout == 1 || layout == 2,
            "layout " + std::to_string(layout) + " is unknown (known: 1, 2)");
    return twofour::packed_bytes(static_cast<twofour::Layout>(layout), n, k);
  });
  m.def(
      "kernel_name",
      [](std::uint32_t layout, std::size_t tokens, std::optional<std::string> isa) {
        return std::string(table(isa).kernel_name(static_cast<twofour::Layout>(layout), tokens));
      },
      "layout"_a, "tokens"_a, "isa"_a.none());
  m.def("linear", linear, "layout"_a, "n"_a, "k"_a, "data"_a, "x"_a, "y"_a, "bias"_a.none(),
        "add"_a, "threads"_a, "isa"_a.none());
  // By position: naming eleven arguments would cost more than it explains.
  m.def("linear_at", linear_at);
  m.def("gated", gated, "layout"_a, "n"_a, "k"_a, "gate"_a, "up"_a, "x"_a, "y"_a, "threads"_a,
        "isa"_a.none());
  m.def("pack", pack, "layout"_a, "dense"_a, "codes"_a.none(), "packed"_a, "threads"_a);
  m.def("unpack", unpack, "layout"_a, "packed"_a, "dense"_a, "codes"_a.none(), "threads"_a);
  m.def("check", check, "layout"_a, "n"_a, "k"_a, "packed"_a, "threads"_a);
  m.def("patch_apply", patch_apply, "n"_a, "k"_a, "row_start"_a, "group"_a, "codes"_a, "delta"_a,
        "packed"_a, "revert"_a, "threads"_a);
  m.def("patch_add", patch_add, "n"_a, "k"_a, "row_start"_a, "group"_a, "codes"_a, "delta"_a, "x"_a,
        "which"_a, "y"_a, "threads"_a, "isa"_a.none());
  m.def("read", read_all, "data"_a, "threads"_a, "isa"_a.none());
}
