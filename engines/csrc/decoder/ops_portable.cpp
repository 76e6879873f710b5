// Decoder operations for any processor.
#include "ops_types.h"

namespace twofour::portable {
namespace {
inline Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }

inline Floats as_floats(Words bits) {
  Floats v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
// acc + low(a) * low(b) + high(a) * high(b), of bf16 pairs.
inline Floats dot_pairs(Floats acc, Words a, Words b) {
  const Words high = Words{} + 0xffff0000u;
  acc = fused(as_floats(a << 16), as_floats(b << 16), acc);
  return fused(as_floats(a & high), as_floats(b & high), acc);
}
}  // namespace
}  // namespace twofour::portable

#define TWOFOUR_OPS_NAMESPACE portable
#include "ops_impl.h"
