// The native module `engines.native._native`. Each area of the engine binds a submodule.
#include "bindings/arrays.h"

NB_MODULE(_native, m) {
  using namespace twofour::python;
  // A Python program that ends with an engine open has its threads stopped where they are, so what
  // they hold is never freed. That is no fault, and nanobind's message about it would be the last
  // thing the program prints.
  nb::set_leak_warnings(false);
  m.doc() = "Native kernels and decoder of the CPU engine.";
  nb::module_ kernels =
      m.def_submodule("kernels", "Packing and products of 2:4 sparse and dense weights.");
  bind_arrays(kernels);
  bind_kernels(kernels);
  nb::module_ decoder = m.def_submodule("decoder", "One step of a decoder-only transformer.");
  bind_decoder(decoder);
}
