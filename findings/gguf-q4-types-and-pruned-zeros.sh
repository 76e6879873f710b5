#!/usr/bin/env bash
# gguf 0.19.0 (llama.cpp's quantisers): which 4- and 5-bit types keep the zeros of a pruned matrix.
#
# Seen on a normal random matrix in which every second weight is zero: Q8_0, Q4_0 and Q5_0 give back
# exact zeros, but Q4_0 and Q5_0 give about half of them the sign bit (-0.0), so a reader that
# compares bit patterns misses them. Q4_1 and Q5_1, which store a minimum instead of being centred on
# zero and are usually the better choice for a dense matrix, give back no exact zero at all: the
# sparsity is gone from the file.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "gguf==0.19.0" "numpy==2.2.6"
"$work/venv/bin/python" - <<'PY'
import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

weight = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
weight[:, ::2] = 0
zero = weight == 0
kept, negative = {}, {}
for kind in (Type.Q8_0, Type.Q4_0, Type.Q5_0, Type.Q4_1, Type.Q5_1):
    stored = dequantize(quantize(weight, kind), kind)[zero]
    kept[kind.name], negative[kind.name] = float((stored == 0).mean()), float(np.signbit(stored).mean())
    print(f"{kind.name}: {kept[kind.name]:.0%} of the zeros are zero, {negative[kind.name]:.0%} negative")
centred = all(kept[name] == 1 for name in ("Q8_0", "Q4_0", "Q5_0"))
signed = all(0.2 < negative[name] < 0.8 for name in ("Q4_0", "Q5_0")) and negative["Q8_0"] == 0
lost = all(kept[name] < 0.01 for name in ("Q4_1", "Q5_1"))
raise SystemExit(not (centred and signed and lost))
PY
