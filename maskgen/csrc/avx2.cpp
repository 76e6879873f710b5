#include "table.h"

namespace twofour::learning {

const Kernels& avx2_kernels() {
  static const Kernels table = make_table("avx2");
  return table;
}

}  // namespace twofour::learning
