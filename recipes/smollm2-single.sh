#!/usr/bin/env bash
# SmolLM2-135M for one 2:4 mask: recovers the weights that the general mask keeps, and measures them.
# 40 minutes on one core with AVX-512-BF16, another run beside it; killed and started again, it goes
# on where it was.
# usage: recipes/smollm2-single.sh DATA OUT (smollm2-texts.bash says what they are)
set -euo pipefail
root=$(dirname "$0")/..
. "$(dirname "$0")/smollm2-texts.bash" # sets data, out, learn and held_out

masks=$root/masks/smollm2-135m-free
[ -d "$out/base" ] || twofour transform apply --model smollm2-135m \
    --transform "$masks/transform.safetensors" --out "$out/base"
if [ ! -f "$out/single.safetensors" ]; then
    twofour recover --model "$out/base" --mask "$masks/general.safetensors" \
        "${learn[@]}" "${held_out[@]}" --held-out-every 60 --held-out-windows 12 \
        --steps 480 --learning-rate 4e-4 --sequence-length 1024 --batch-size 1 --micro-batches 1 \
        --set windows=16 --seed 0 --resume \
        --run-dir "$out/run" --checkpoint "$out/model" --out "$out/single.safetensors"
fi
for text in "$data/eval/wiki.test.raw" c4; do
    twofour eval --model "$out/model" --mask "$out/single.safetensors" --data "$text" --windows 16
done
