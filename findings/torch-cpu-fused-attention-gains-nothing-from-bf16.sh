#!/usr/bin/env bash
# torch 2.13.0 (CPU build) on a processor with bf16 instructions: fused attention does not use them.
#
# Seen on one thread of a Zen 5 with AVX-512-BF16, causal, 9 heads of 64, 1,024 tokens: a matrix
# product is three times as fast in bf16 as in fp32, but scaled_dot_product_attention takes as long
# in bf16 as in fp32 (22 and 21 ms). The same attention written as plain bf16 products, a block of
# 128 queries over the keys up to its end, takes 8 ms: so a model in bf16 spends most of a long
# forward pass in attention. The script asks for a part of these differences, since machines differ;
# without such a processor there is nothing to see, and it says so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "numpy==2.2.6"
"$work/venv/bin/python" - <<'PY'
import statistics
import time

import torch
import torch.nn.functional as F

if not torch.cpu._is_avx512_bf16_supported():
    print("no bf16 instructions here: nothing to see")
    raise SystemExit(0)
torch.set_num_threads(1)
HEADS, TOKENS, WIDTH, BLOCK = 9, 1024, 64, 128


def attention(dtype):
    return [torch.randn(1, HEADS, TOKENS, WIDTH, dtype=dtype) for _ in range(3)]


def fused(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def blocked(query, key, value):
    future = torch.full((BLOCK, BLOCK), float("-inf"), dtype=query.dtype).triu(1)
    parts = []
    for start in range(0, TOKENS, BLOCK):
        end = start + BLOCK
        scores = query[:, :, start:end] * WIDTH**-0.5 @ key[:, :, :end].transpose(2, 3)
        scores[..., start:] += future
        parts.append(torch.softmax(scores, -1) @ value[:, :, :end])
    return torch.cat(parts, 2)


bf16, fp32 = attention(torch.bfloat16), attention(torch.float32)
assert torch.allclose(fused(*bf16), blocked(*bf16), atol=0.05)
square = torch.randn(2048, 2048)
arms = {
    "product, fp32": lambda: square @ square,
    "product, bf16": lambda half=square.bfloat16(): half @ half,
    "fused attention, fp32": lambda: fused(*fp32),
    "fused attention, bf16": lambda: fused(*bf16),
    "blocked attention, bf16": lambda: blocked(*bf16),
}
times = {name: [] for name in arms}
for _ in range(15):  # in turns
    for name, run in arms.items():
        start = time.perf_counter()
        run()
        times[name].append(time.perf_counter() - start)
took = {name: statistics.median(found[2:]) for name, found in times.items()}
for name, seconds in took.items():
    print(f"{name}: {1000 * seconds:.1f} ms")
instructions = took["product, bf16"] < 0.7 * took["product, fp32"]
unused = took["fused attention, bf16"] > 0.8 * took["fused attention, fp32"]
beaten = took["blocked attention, bf16"] < 0.7 * took["fused attention, bf16"]
raise SystemExit(not (instructions and unused and beaten))
PY
