// Decoder operations for any processor.
#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct PortableLanes : WideLanes {
  static constexpr int attention_rows = 6, attention_vectors = 4;
  static Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats dot(Floats sums, Words pairs, Words pair) {
    return dot_in_two<PortableLanes>(sums, pairs, pair);
  }
};

}  // namespace

const DecoderOps& portable_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<PortableLanes>();
  return table;
}

}  // namespace twofour
