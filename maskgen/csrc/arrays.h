// torch's tensors as the Python edge takes them, and how it refuses them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"

namespace twofour::learning {

namespace nb = nanobind;
using namespace nb::literals;

// numpy has no bf16. `Weight`: bfloat16 or float32.
using Weight = nb::ndarray<nb::pytorch, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<nb::pytorch, float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Floats2d = nb::ndarray<nb::pytorch, float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<nb::pytorch, std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<nb::pytorch, float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<nb::pytorch, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<nb::pytorch, std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<nb::pytorch, std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

inline bool is_bf16(const Weight& a) {
  const nb::dlpack::dtype type = a.dtype();
  if (type == nb::dtype<float>()) return false;
  if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16) {
    return true;
  }
  refuse("weights must be bfloat16 or float32");
}

inline void same_as_weight(const Weight& weight, const Weight& other, const char* name) {
  if (other.shape(0) != weight.shape(0) || other.shape(1) != weight.shape(1) ||
      other.dtype() != weight.dtype()) {
    refuse(std::string(name) + " must have the shape and type of the weight");
  }
}

// The kernels of a learning step that are not of masks.
void define_step_kernels(nb::module_& m);

}  // namespace twofour::learning
