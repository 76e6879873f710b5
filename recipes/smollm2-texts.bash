# Sourced by the recipes: their arguments, and the texts that they learn and are measured on.
# DATA  folder of the texts that no package holds (docs/evaluation.md#texts)
# OUT   folder for the model, its mask and the unfinished run
usage="usage: $0 DATA OUT"
data=${1:?$usage} out=${2:?$usage}
general=$data/general

for text in "$general"/{wikipedia,openwebtext}.{train.jsonl.gz,test.jsonl} \
    "$data/eval/wiki.test.raw"; do
    [ -f "$text" ] && continue
    echo "error: $text is missing; docs/evaluation.md says where to get it" >&2
    exit 1
done

mkdir -p "$out"
learn=(--data "$general/wikipedia.train.jsonl.gz" --data "$general/openwebtext.train.jsonl.gz")
held_out=(--held-out "$general/wikipedia.test.jsonl" --held-out "$general/openwebtext.test.jsonl"
    --held-out-every 20 --held-out-windows 16)
