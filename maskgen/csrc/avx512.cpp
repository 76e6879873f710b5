#include "table.h"

namespace twofour::learning {

const Kernels& avx512_kernels() {
  static const Kernels table = make_table("avx512");
  return table;
}

}  // namespace twofour::learning
