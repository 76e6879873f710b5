#!/usr/bin/env bash
# Every measurement of docs/results but those through vLLM (make bench-vllm) and TensorRT-LLM, which
# needs a GPU. Takes most of a day. llama.cpp is measured too if llama-batched-bench and
# llama-perplexity are on the PATH and runs/bench holds its files (docs/engine.md).
# usage: benchmarks/run_all.sh BIN DATA
#   BIN   folder of the twofour command
#   DATA  folder of the texts that no package holds (docs/evaluation.md#texts)
set -euo pipefail
bin=$1 data=$2 runs=runs/bench
base=$runs/base masks=masks/smollm2-135m-free
general=$masks/general.safetensors
twofour() { "$bin/twofour" "$@"; }

for text in eval/wiki.test.raw general/{wikipedia,openwebtext}.train.jsonl.gz \
    domains/{french,html,javascript,python,cuda,story}.{train,test}.jsonl; do
    [ -f "$data/$text" ] && continue
    echo "error: $data/$text is missing; docs/evaluation.md says where to get it" >&2
    exit 1
done

mkdir -p "$runs"
[ -d $base ] || twofour transform apply --model smollm2-135m \
    --transform $masks/transform.safetensors --out $base
[ -d $runs/dense ] || twofour build --model smollm2-135m --out $runs/dense
turned=(--model smollm2-135m --transform $masks/transform.safetensors)
[ -d $runs/sparse ] || twofour build "${turned[@]}" --mask general=$general --out $runs/sparse
"$bin/python" -m benchmarks.engine.shaped_model $runs/1b
pair=(--dense $runs/dense --sparse $runs/sparse)

gguf=()
for type in bf16 q8_0 q4_1; do
    [ -f $runs/$type.gguf ] && command -v llama-batched-bench >/dev/null &&
        gguf+=(--peer "llama.cpp-$type=$runs/$type.gguf")
done
dtype=float32 # emulated bf16 is slower
grep -q avx512_bf16 /proc/cpuinfo && dtype=bfloat16
vllm=(--peer vllm-dense=.venv-vllm/bin/python --vllm-dtype $dtype --vllm-binding all)

twofour bench kernels --plot
twofour bench kernels --shapes 4096x14336,4096x4096,8192x2048 --isa all --tokens 1,8,32 --keep
twofour bench kernels --lowbit --shapes 4096x4096,14336x4096,1536x576,576x1536 --tokens 1,8,32,128
twofour bench engine speed --model smollm2-135m "${pair[@]}" --kv-mib 1024 \
    ${gguf[@]+"${gguf[@]}"} "${vllm[@]}"
twofour bench engine speed --dense $runs/1b/dense --sparse $runs/1b/sparse --lengths 128/32 \
    --concurrency 1,4 --repeats 2 --result bench-engine-1b
arms=(--arm sparse-bf16=$runs/sparse --arm dense-bf16=$runs/dense)
for values in int8 int4; do
    [ -d $runs/dense-$values ] ||
        twofour build --model smollm2-135m --values $values --out $runs/dense-$values
    [ -d $runs/sparse-$values ] ||
        twofour build "${turned[@]}" --values $values --mask general=$general \
            --out $runs/sparse-$values
    arms+=(--arm sparse-$values=$runs/sparse-$values --arm dense-$values=$runs/dense-$values)
    wide=masks/smollm2-135m-16-32/general.safetensors
    [ -d $runs/bitmap-$values ] ||
        twofour build --model smollm2-135m --values $values --mask wide=$wide \
            --out $runs/bitmap-$values
    arms+=(--arm bitmap-$values=$runs/bitmap-$values)
done
lowbit_peers=()
for type in q4_0 q8_0; do
    [ -f $runs/$type.gguf ] && command -v llama-batched-bench >/dev/null &&
        lowbit_peers+=(--peer "llama.cpp-$type=$runs/$type.gguf")
done
for type in q4_0 q4_k_m q8_0; do # ik_llama.cpp's llama-batched-bench, under a name of its own
    [ -f $runs/$type.gguf ] && command -v ik-llama-batched-bench >/dev/null &&
        lowbit_peers+=(--peer "ik-$type=$runs/$type.gguf")
done
twofour bench engine speed "${arms[@]}" --reference sparse-int4 --lengths 128/128,1024/32 \
    --concurrency 1,8,32 --kv-mib 1024 --result bench-lowbit \
    ${lowbit_peers[@]+"${lowbit_peers[@]}"}
"$bin/python" -m benchmarks.sizing $runs/sparse-int8
for values in int8 int4; do
    "$bin/python" -m benchmarks.engine.shaped_model $runs/1b --values $values
done
twofour bench engine speed --arm sparse-bf16=$runs/1b/sparse --arm dense-bf16=$runs/1b/dense \
    --arm sparse-int8=$runs/1b/sparse-int8 --arm dense-int8=$runs/1b/dense-int8 \
    --arm sparse-int4=$runs/1b/sparse-int4 --arm dense-int4=$runs/1b/dense-int4 \
    --reference sparse-int4 --lengths 128/32 --concurrency 1,4 --repeats 2 \
    --result bench-lowbit-1b
twofour bench engine split "${pair[@]}"
twofour bench engine mix --sparse $runs/sparse
twofour bench quality --model $base --mask $general --data "$data/eval/wiki.test.raw" --windows 4 "${pair[@]}" \
    ${gguf[@]+"${gguf[@]}"} --redo
if program=$(command -v llama-perplexity); then
    twofour bench export --model $base --mask $general --data "$data/eval/wiki.test.raw" \
        --program "$program" --redo
fi
twofour bench values --wikitext2 "$data/eval/wiki.test.raw" --c4 c4 --mask $base=$general
twofour bench values --wikitext2 "$data/eval/wiki.test.raw" --c4 c4 --mask $wide \
    --spec int8 --spec int4
# Beside llama.cpp's server: start llama-server, and add --arm llama-server-q4_0=http://HOST:PORT.
twofour bench serve "${pair[@]}" --arm sparse-int8=$runs/sparse-int8 \
    --arm dense-int8=$runs/dense-int8 --arm sparse-int4=$runs/sparse-int4 --reference dense-int8 \
    --lengths 128/128 --concurrency 1,8,32 --repeats 3 --result serve
twofour bench overhead --sparse $runs/sparse-int8
twofour bench reliability --model $base --mask general=$general \
    --mask french=$masks/french.safetensors --load $masks/html.safetensors \
    --load $masks/python.safetensors

texts=(--wikitext2 "$data/eval/wiki.test.raw" --c4 c4
    --learn "$data/general/wikipedia.train.jsonl.gz"
    --learn "$data/general/openwebtext.train.jsonl.gz")
twofour bench masks league "${texts[@]}" --windows 16 --calibration-windows 48 --work runs/masks \
    --set maskllm.steps=320 --set roi.steps=300 --set maskpro.steps=700 --plot --redo
PATH=$bin:$PATH "$(dirname "$0")/../recipes/smollm2-single.sh" "$data" runs/single
PATH=$bin:$PATH "$(dirname "$0")/../recipes/smollm2-single-16-32.sh" "$data" runs/wide
twofour bench values --wikitext2 "$data/eval/wiki.test.raw" --c4 c4 --spec int8 --spec int4 \
    --single runs/wide/model=runs/wide/single.safetensors
twofour bench picture
twofour bench masks structure "${texts[@]}" --windows 16 --calibration-windows 48 --work runs/masks
twofour bench masks patterns "${texts[@]}" --windows 16 --calibration-windows 48 --work runs/masks \
    --set maskpro.steps=200 --redo
twofour bench masks permutation "${texts[@]}" --windows 16 --calibration-windows 48 \
    --work runs/permutation --seeds 3
twofour bench masks products "${texts[@]}" --windows 16 --work runs/masks --swappable $base=$general --swappable $wide \
    --single runs/single/model=runs/single/single.safetensors \
    --single runs/wide/model=runs/wide/single.safetensors --redo
twofour bench masks ablations "${texts[@]}" --windows 4 --calibration-windows 48 --work runs/masks \
    --set maskllm.steps=30 --set maskllm.batch_size=2 --redo
domains=()
for name in french html javascript python cuda story; do
    domains+=(--domain "$name=$data/domains/$name.train.jsonl,$data/domains/$name.test.jsonl")
done
twofour bench masks domains --model $base --general $general "${domains[@]}" --start transfer \
    --windows 4 --set roi.steps=60 --set roi.learning_rate=4e-3 --set roi.final_learning_rate=4e-4 \
    --set roi.active_share=0.02 --set roi.active_after=20 --work runs/domains --redo
twofour bench masks domains --general $wide "${domains[@]}" --start transfer --windows 4 \
    --set roi.steps=60 --set roi.learning_rate=4e-3 --set roi.final_learning_rate=4e-4 \
    --work runs/domains-16-32 --redo
# A second model, if its terms have been accepted before: twofour data fetch --alias gemma3-270m
if twofour data fetch --alias gemma3-270m </dev/null; then
    other=$runs/gemma-sparsegpt.safetensors
    [ -f "$other" ] || twofour mask prune --model gemma3-270m --method sparsegpt --windows 24 \
        --data "$data/general/wikipedia.train.jsonl.gz" --out "$other"
    for values in bf16 int8; do
        at=$runs/gemma-$values
        [ -d "$at-dense" ] || twofour build --model gemma3-270m --values $values --out "$at-dense"
        [ -d "$at-sparse" ] || twofour build --model gemma3-270m --values $values \
            --mask "general=$other" --out "$at-sparse"
    done
    second=(--arm dense-int8=$runs/gemma-int8-dense --arm sparse-int8=$runs/gemma-int8-sparse)
    [ -f $runs/gemma-bf16.gguf ] && second+=(--peer llama.cpp-bf16=$runs/gemma-bf16.gguf)
    twofour bench engine second --dense $runs/gemma-bf16-dense --sparse $runs/gemma-bf16-sparse \
        "${second[@]}" --reference sparse-int8 --wikitext2 "$data/eval/wiki.test.raw" --windows 2 \
        --repeats 3
fi
twofour bench masks cost
twofour bench models
twofour bench pages
