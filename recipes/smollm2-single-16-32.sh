#!/usr/bin/env bash
# SmolLM2-135M for one 16:32 mask: the general one, its weights recovered with int4 values in the
# loop, measured in int8 and int4. 57 minutes on two cores with AVX-512-BF16 beside other work (4 s
# a step of 600 when nothing else ran); killed and started again, it goes on where it was.
# usage: recipes/smollm2-single-16-32.sh DATA OUT (smollm2-texts.bash says what they are)
set -euo pipefail
root=$(dirname "$0")/..
. "$(dirname "$0")/smollm2-texts.bash" # sets data, out, learn and held_out

if [ ! -f "$out/single.safetensors" ]; then
    twofour recover --model smollm2-135m \
        --mask "$root/masks/smollm2-135m-16-32/general.safetensors" "${learn[@]}" \
        "${held_out[@]}" --held-out-every 60 --held-out-windows 12 \
        --steps 600 --learning-rate 4e-4 --sequence-length 1024 --batch-size 1 --micro-batches 1 \
        --values int4 --set windows=16 --seed 0 --resume \
        --run-dir "$out/run" --checkpoint "$out/model" --out "$out/single.safetensors"
fi
for text in "$data/eval/wiki.test.raw" c4; do
    twofour eval --model "$out/model" --mask "$out/single.safetensors" --data "$text" --windows 4
done
for values in int8 int4; do
    twofour build --model "$out/model" --mask "single=$out/single.safetensors" --sealed \
        --target cpu --values $values --overwrite --out "$out/engine-$values"
    twofour eval "$out/engine-$values" --data "$data/eval/wiki.test.raw" --windows 4
done
