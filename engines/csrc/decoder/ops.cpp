#include "ops.h"

#include <stdexcept>

namespace twofour {

const DecoderOps& decoder_ops(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return portable::decoder_ops;
#ifdef TWOFOUR_X86
    case Isa::avx2:
      return avx2::decoder_ops;
    case Isa::avx512:
      return avx512::decoder_ops;
    case Isa::avx512_bf16:
      return avx512_bf16::decoder_ops;
#endif
    default:
      throw std::runtime_error("the decoder was built without this instruction set");
  }
}

}  // namespace twofour
