#include "table.h"

namespace twofour::learning {

const Kernels& portable_kernels() {
  static const Kernels table = make_table("portable");
  return table;
}

}  // namespace twofour::learning
