# Sourced by the recipes for GPUs: the same steps for a model of any size.
# MODEL     Hugging Face id, directory or GGUF file of a dense base model
# TRAIN     text to learn on, a .jsonl(.gz) file or a folder of them; a step reads 262,144 tokens
# HELD_OUT  text that decides when to stop; neither the test text nor part of TRAIN
# OUT       folder for everything that is made; started again, a recipe goes on where it was
usage="usage: $0 MODEL TRAIN HELD_OUT OUT"
model=${1:?$usage} train=${2:?$usage} held_out=${3:?$usage} out=${4:?$usage}

for text in "$train" "$held_out"; do
    [ -e "$text" ] && continue
    echo "error: $text is missing: give files or folders of text" >&2
    exit 1
done
mkdir -p "$out"

# A basis of the same model in which masks lose less, and the one-shot mask to start from.
find_basis() {
    [ -f "$out/turned.safetensors" ] ||
        twofour transform learn --model "$model" --method rotation --data "$train" \
            --windows 128 --length 2048 --out "$out/turned.safetensors"
    [ -f "$out/basis.safetensors" ] ||
        twofour transform learn --model "$model" --method assignment --data "$train" \
            --windows 128 --length 2048 --start "$out/turned.safetensors" \
            --out "$out/basis.safetensors"
    [ -d "$out/base" ] ||
        twofour transform apply --model "$model" --transform "$out/basis.safetensors" \
            --out "$out/base"
    [ -f "$out/prior.safetensors" ] ||
        twofour mask prune --model "$out/base" --method sparsegpt --data "$train" \
            --windows 128 --length 2048 --out "$out/prior.safetensors"
}

# Product A: a mask on frozen weights. Masks of domains start from it and are differences to it.
# usage: learn_mask COMMAND... (how twofour is started); 500 steps of 64 sequences of 4,096 tokens
learn_mask() {
    [ -f "$out/general.safetensors" ] ||
        "$@" mask learn --model "$out/base" --method roi --prior "$out/prior.safetensors" \
            --data "$train" --steps 500 --sequence-length 4096 --batch-size 1 \
            --micro-batches 64 --set activation_checkpointing=true --seed 0 --resume \
            --held-out "$held_out" --run-dir "$out/general.run" --out "$out/general.safetensors"
}

# Product B: the weights that the mask keeps, tuned for it alone.
# usage: recover_weights COMMAND...; 1,000 steps of 64 sequences of 4,096 tokens
recover_weights() {
    [ -f "$out/single.safetensors" ] ||
        "$@" recover --model "$out/base" --mask "$out/general.safetensors" \
            --data "$train" --steps 1000 --sequence-length 4096 --batch-size 1 \
            --micro-batches 64 --learning-rate 2e-5 --seed 0 --resume \
            --held-out "$held_out" --held-out-every 50 --run-dir "$out/single.run" \
            --checkpoint "$out/single" --out "$out/single.safetensors"
}

measure() {
    twofour eval --model "$out/base" --data "$held_out" --windows 64
    twofour eval --model "$out/base" --mask "$out/general.safetensors" --data "$held_out" \
        --windows 64
    twofour eval --model "$out/single" --mask "$out/single.safetensors" --data "$held_out" \
        --windows 64
    twofour build --model "$out/single" --mask "single=$out/single.safetensors" --sealed \
        --target vllm --overwrite --out "$out/engine"
}
