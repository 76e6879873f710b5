#!/usr/bin/env bash
# An order of channels for SmolLM2-135M, and a 2:4 mask of it for general text, learned on frozen
# weights: masks/smollm2-135m-free/{transform,general}.safetensors. Some 90 minutes on one core of
# a Zen 5 beside other work; killed and started again, it goes on where it was.
# usage: recipes/smollm2-general.sh DATA OUT (smollm2-texts.bash says what they are)
set -euo pipefail
. "$(dirname "$0")/smollm2-texts.bash" # sets data, out, learn and held_out
model=(--model smollm2-135m --transform "$out/transform.safetensors")

if [ ! -f "$out/transform.safetensors" ]; then
    twofour transform learn --model smollm2-135m --method learned "${learn[@]}" --windows 32 \
        --length 1024 --set loss=amd --set steps=240 --set seed=1 --set held_out_every=20 \
        --resume --run-dir "$out/order" --out "$out/transform.safetensors"
fi
if [ ! -f "$out/sparsegpt.safetensors" ]; then
    twofour mask prune "${model[@]}" --method sparsegpt --windows 48 \
        --data "$general/wikipedia.train.jsonl.gz" --out "$out/sparsegpt.safetensors"
fi
if [ ! -f "$out/general.safetensors" ]; then
    twofour mask learn "${model[@]}" --method roi --prior "$out/sparsegpt.safetensors" \
        "${learn[@]}" --held-out "$general/openwebtext.test.jsonl" --held-out-every 50 \
        --steps 640 --sequence-length 512 --batch-size 2 \
        --learning-rate 2e-3 --final-learning-rate 2e-4 --set epsilon=1e-4 \
        --set top_n=entropic --set scale=0.01,0.003 --set tau=1.2,0.1 --set annealed=0.9 \
        --set margin=0.08 --set distillation=0.5 --seed 0 \
        --resume --run-dir "$out/run" --out "$out/general.safetensors"
fi
for text in "$data/eval/wiki.test.raw" c4; do
    twofour eval "${model[@]}" --mask "$out/general.safetensors" --data "$text" --windows 16
done
