#!/usr/bin/env bash
# SmolLM2-135M for one 2:4 mask: recovers the weights that the general mask keeps, and measures them.
# At most 90 minutes on two cores; killed and started again, it goes on where it was.
# usage: recipes/smollm2-single.sh DATA OUT
#   DATA  folder of the texts that no package holds (docs/evaluation.md#texts)
#   OUT   folder for the model, its mask and the unfinished run
set -euo pipefail
data=$1 out=$2
root=$(dirname "$0")/..
general=$data/general

for text in "$general"/{wikipedia,openwebtext}.{train.jsonl.gz,test.jsonl} \
    "$data/eval/wiki.test.raw"; do
    [ -f "$text" ] && continue
    echo "error: $text is missing; docs/evaluation.md says where to get it" >&2
    exit 1
done

mkdir -p "$out"
learn=(--data "$general/wikipedia.train.jsonl.gz" --data "$general/openwebtext.train.jsonl.gz")
if [ ! -f "$out/single.safetensors" ]; then
    twofour recover --model smollm2-135m --mask "$root/masks/smollm2-135m/general.safetensors" \
        "${learn[@]}" \
        --held-out "$general/wikipedia.test.jsonl" --held-out "$general/openwebtext.test.jsonl" \
        --held-out-every 20 --held-out-windows 16 --steps 260 --seed 0 --resume \
        --run-dir "$out/run" --checkpoint "$out/model" --out "$out/single.safetensors"
fi
for text in "$data/eval/wiki.test.raw" c4; do
    twofour eval --model "$out/model" --mask "$out/single.safetensors" --data "$text" --windows 16
done
