#include "decoder/ops.h"

namespace twofour {

const DecoderOps& decoder_ops(Isa isa) {
  require_supported(isa);
#ifdef TWOFOUR_X86
  if (isa == Isa::avx512_bf16) return avx512_bf16_decoder_ops();
  if (isa == Isa::avx512) return avx512_decoder_ops();
  if (isa == Isa::avx2) return avx2_decoder_ops();
#endif
  return portable_decoder_ops();
}

}  // namespace twofour
