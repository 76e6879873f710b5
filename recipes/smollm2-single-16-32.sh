#!/usr/bin/env bash
# SmolLM2-135M for one 16:32 mask: Wanda's, recovered, measured in bf16, int8 and int4.
# An hour and more on two quiet cores with AVX2 (13 s a step of 240), 2.3 hours beside other work;
# killed and started again, it goes on where it was.
# usage: recipes/smollm2-single-16-32.sh DATA OUT (smollm2-texts.bash says what they are)
set -euo pipefail
. "$(dirname "$0")/smollm2-texts.bash" # sets data, out, learn and held_out

if [ ! -f "$out/wanda.safetensors" ]; then
    twofour mask prune --model smollm2-135m --method wanda --pattern 16:32 --windows 32 \
        --data "$general/openwebtext.train.jsonl.gz" --out "$out/wanda.safetensors"
fi
if [ ! -f "$out/single.safetensors" ]; then
    twofour recover --model smollm2-135m --mask "$out/wanda.safetensors" "${learn[@]}" \
        "${held_out[@]}" --steps 240 --learning-rate 4e-4 \
        --sequence-length 1024 --batch-size 1 --micro-batches 1 \
        --set least_squares=0.5 --set windows=16 --set warm_up=10 --seed 0 --resume \
        --run-dir "$out/run" --checkpoint "$out/model" --out "$out/single.safetensors"
fi
for text in "$data/eval/wiki.test.raw" c4; do
    twofour eval --model "$out/model" --mask "$out/single.safetensors" --data "$text" --windows 16
done
for values in int8 int4; do
    twofour build --model "$out/model" --mask "single=$out/single.safetensors" --sealed \
        --target cpu --values $values --overwrite --out "$out/engine-$values"
    twofour eval "$out/engine-$values" --data "$data/eval/wiki.test.raw" --windows 16
done
