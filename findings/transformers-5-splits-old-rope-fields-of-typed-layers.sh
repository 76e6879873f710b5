#!/usr/bin/env bash
# transformers 5.24.0 reads the rope fields of version 4 by halves where layers have types.
#
# OLMo 3 and Gemma 3 have a rope for layers with a window and one for the others. In config.json of
# version 4, `rope_theta` of OLMo 3 was for both, and `rope_scaling` could say its kind under `type`.
# Seen: an OLMo 3 file with `rope_theta: 10000` gives 10000 to the layers that see all, and the
# class's own default of 500000 to the others, without a word (the first use takes the field out of
# the arguments). And `rope_scaling: {"type": "linear", "factor": 8}` of a Gemma 3 file keeps its
# factor but not its kind: the rope stays `default`, unscaled; with `rope_type` it is linear.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "transformers==5.24.0"
"$work/venv/bin/python" - <<'PY'
from transformers import AutoConfig

ropes = AutoConfig.for_model("olmo3", rope_theta=10000.0).rope_parameters
theta = {kind: ropes[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")}
print(f"OLMo 3, rope_theta 10000: {theta}")
kinds = {}
for name in ("type", "rope_type"):
    scaling = {name: "linear", "factor": 8.0}
    config = AutoConfig.for_model("gemma3_text", rope_scaling=scaling)
    kinds[name] = config.rope_parameters["full_attention"]["rope_type"]
print(f"Gemma 3, kind of rope_scaling by the field that names it: {kinds}")
split = theta == {"full_attention": 10000.0, "sliding_attention": 500000.0}
raise SystemExit(not (split and kinds == {"type": "default", "rope_type": "linear"}))
PY
