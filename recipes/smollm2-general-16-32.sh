#!/usr/bin/env bash
# A 16:32 mask of SmolLM2-135M for general text, learned on frozen weights, which is
# masks/smollm2-135m-16-32/general.safetensors. 74 minutes beside other work on a Zen 5, half
# of the steps on one core; killed and started again, it goes on where it was.
# usage: recipes/smollm2-general-16-32.sh DATA OUT (smollm2-texts.bash says what they are)
set -euo pipefail
. "$(dirname "$0")/smollm2-texts.bash" # sets data, out, learn and held_out

if [ ! -f "$out/sparsegpt.safetensors" ]; then
    twofour mask prune --model smollm2-135m --method sparsegpt --pattern 16:32 --windows 48 \
        --data "$general/wikipedia.train.jsonl.gz" --out "$out/sparsegpt.safetensors"
fi
if [ ! -f "$out/general.safetensors" ]; then
    twofour mask learn --model smollm2-135m --method roi --pattern 16:32 \
        --prior "$out/sparsegpt.safetensors" "${learn[@]}" \
        --held-out "$general/openwebtext.test.jsonl" --held-out-every 50 \
        --steps 640 --sequence-length 512 --batch-size 2 \
        --learning-rate 2e-3 --final-learning-rate 2e-4 --set epsilon=1e-4 \
        --set top_n=entropic --set scale=0.01,0.003 --set tau=1.2,0.05 --set margin=0.08 \
        --set distillation=0.5 --resume --run-dir "$out/run" --out "$out/general.safetensors"
fi
for text in "$data/eval/wiki.test.raw" c4; do
    twofour eval --model smollm2-135m --mask "$out/general.safetensors" --data "$text" --windows 16
done
