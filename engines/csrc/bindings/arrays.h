// What the bindings of this folder share: numpy's arrays as C++ sees them, and the bound structs
// that hold several of them. bf16 crosses as uint16, because numpy has no bf16 of its own.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace twofour::python {

namespace nb = nanobind;

// Contiguous, in memory; `const T` also takes read-only arrays.
template <class T, int Dimensions>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Bytes = Array<const std::uint8_t, 1>;
using Vector = Array<const float, 1>;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// Throws std::invalid_argument unless it is the number of a layout.
Layout layout_of(std::uint32_t number);

// Throws std::invalid_argument unless a layer can have this layout, shape, block and minima.
std::size_t bytes_of(std::uint32_t layout, std::size_t n, std::size_t k, std::size_t block,
                     bool minima);

// Throws std::invalid_argument unless the shape is possible and takes so many bytes. Codes are not
// looked at: `check` does that. `block` and `minima` are 0 and false for layouts of bf16.
Weights weights_of(std::uint32_t layout, std::size_t n, std::size_t k, const std::uint8_t* data,
                   std::size_t bytes, std::size_t block = 0, bool minima = false);

// One linear layer's packed weights.
struct PackedLayer {
  PackedLayer(std::uint32_t layout, std::size_t n, std::size_t k, Bytes data, std::size_t block = 0,
              bool minima = false);

  Bytes data;  // before `weights`, which points into it
  Weights weights;
};

// A patch of one linear layer: everything that the kernels rely on is checked here, once.
struct PatchArrays {
  PatchArrays(std::size_t n, std::size_t k, Array<const std::uint32_t, 1> row_start,
              Array<const std::uint32_t, 1> group, Bytes codes,
              Array<const std::uint16_t, 2> delta);

  Array<const std::uint32_t, 1> row_start;
  Array<const std::uint32_t, 1> group;
  Bytes codes;
  Array<const std::uint16_t, 2> delta;
  Patch patch;
};

void bind_arrays(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_lowbit(nb::module_& m);
void bind_lowbit_patch(nb::module_& m);
void bind_decoder(nb::module_& m);
void bind_draw(nb::module_& m);

}  // namespace twofour::python
