// Decoder operations for any processor.
#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct PortableLanes {
  static Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats dot_pairs(Floats acc, Words a, Words b) {
    return dot_pairs_in_two<PortableLanes>(acc, a, b);
  }
};

}  // namespace

const DecoderOps& portable_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<PortableLanes>();
  return table;
}

}  // namespace twofour
