#!/usr/bin/env bash
# tokenizers 0.23.3: a DecodeStream that was given prompt ids returns the prompt's own text when the
# prompt ends inside a character.
#
# Seen: `DecodeStream(ids)` takes the ids that came before, so that `step` returns only new text. If
# the ids end between the tokens of one multi-byte character (a client may cut a prompt anywhere),
# the first `step` returns the whole prompt, a replacement character and the new token together. A
# server that streams what `step` gives then sends the prompt back as the beginning of its answer.
# With ids that end on a character boundary nothing of the prompt comes back.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "tokenizers==0.23.3"
"$work/venv/bin/python" - <<'PY'
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream
from tokenizers.pre_tokenizers import ByteLevel

tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
prompt = tokenizer.encode("Price: 5 €").ids  # the sign takes three tokens
answer = tokenizer.encode(" or so").ids


def streamed(ids):
    stream = DecodeStream(ids)
    return "".join(stream.step(tokenizer, i) or "" for i in answer)


whole, cut = streamed(prompt), streamed(prompt[:-1])
print("prompt ends on a character:", repr(whole))
print("prompt ends inside one:    ", repr(cut))
raise SystemExit(not (whole == " or so" and cut == "Price: 5 \ufffd or so"))
PY
