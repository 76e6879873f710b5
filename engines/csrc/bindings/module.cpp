// The native module `engines.native._native`. One module without submodules, so that
// its stub is one file: a folder of stubs would hide the module from editable installs.
#include "bindings/arrays.h"

NB_MODULE(_native, m) {
  using namespace twofour::python;
  // A Python program that ends with an engine open has its threads stopped where they are, so what
  // they hold is never freed. That is no fault, and nanobind's message about it would be the last
  // thing the program prints.
  nb::set_leak_warnings(false);
  m.doc() = "Native kernels and decoder of the CPU engine.";
  bind_arrays(m);
  bind_kernels(m);
  bind_lowbit(m);
  bind_lowbit_patch(m);
  bind_decoder(m);
  bind_draw(m);
}
