// The native module `engines.native._native`. Each area of the engine binds a submodule.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_kernels(nb::module_ m);
void bind_decoder(nb::module_ m);

NB_MODULE(_native, m) {
  // A Python program that ends with an engine open has its threads stopped where they are, so what
  // they hold is never freed. That is no fault, and nanobind's message about it would be the last
  // thing the program prints.
  nb::set_leak_warnings(false);
  m.doc() =
      "Native kernels of the CPU engine; see engines/native/kernels.py for the typed interface.";
  bind_decoder(m.def_submodule("decoder", "One step of a decoder-only transformer."));
  bind_kernels(m.def_submodule("kernels", "Packing and products of 2:4 sparse and dense weights."));
}
