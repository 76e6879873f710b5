#!/usr/bin/env bash
# transformers 5.24.0 with compressed-tensors 0.19.0: a 2:4 checkpoint that compressed-tensors itself
# wrote loads without an error, and every pruned matrix is random.
#
# Seen: compressed-tensors 0.14.0 writes a tiny Llama in its `sparse-24-bitmask` format, and with
# transformers 4.57.6 reads all 14 pruned matrices back bit for bit. The current pair, which no longer
# knows the format, opens the same directory through its `quantization_config`, skips the compressed
# tensors, initialises the matrices anew and returns a model: `from_pretrained` raises nothing, the
# only trace is a table in the log. Downloads about 200 MB and takes some minutes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1
cat > "$work/write.py" <<'PY'
import sys

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.config import Sparse24BitMaskConfig
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )
).to(torch.bfloat16)
with torch.no_grad():
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight"):
            weight.view(-1, 4)[:, 2:] = 0
torch.save(model.state_dict(), sys.argv[2])
form = Sparse24BitMaskConfig(
    targets=["Linear"], ignore=["lm_head"], sparsity_structure="2:4", global_sparsity=0.5
)
compressor = ModelCompressor(sparsity_config=form)
model.save_pretrained(sys.argv[1], state_dict=compressor.compress(model))
compressor.update_config(sys.argv[1])
PY
cat > "$work/read.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM

written = torch.load(sys.argv[2], weights_only=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
pruned = [name for name in written if name.endswith("proj.weight")]
same = sum(torch.equal(model.state_dict()[name], written[name]) for name in pruned)
print(
    f"transformers {version('transformers')}, compressed-tensors {version('compressed-tensors')}:"
    f" {same} of {len(pruned)} pruned matrices are as written"
)
raise SystemExit(same != int(sys.argv[3]))
PY
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet)
"${pip[@]}" "torch==2.13.0" "transformers==4.57.6" "compressed-tensors==0.14.0" accelerate==1.15.0
"$work/venv/bin/python" "$work/write.py" "$work/model" "$work/written.pt" 2>/dev/null
"$work/venv/bin/python" "$work/read.py" "$work/model" "$work/written.pt" 14 2>/dev/null
"${pip[@]}" --upgrade "transformers==5.24.0" "compressed-tensors==0.19.0"
"$work/venv/bin/python" "$work/read.py" "$work/model" "$work/written.pt" 0 2>/dev/null
