#!/usr/bin/env bash
# Writes the checkpoints of this folder anew, each with a release of the tool that wrote such files,
# in an environment of its own (several gigabytes, below WORK).
# usage: tests/engines/directory/foreign/make.sh [WORK]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-build/foreign}
mkdir -p "$work"
work=$(cd "$work" && pwd)

checkpoint() { # TOOL VERSION PACKAGE...
    local name=$1-$2 python=$work/$1-$2/bin/python
    [ -x "$python" ] || python3 -m venv "$work/$name"
    "$python" -m pip install --quiet torch==2.13.0 "${@:3}"
    rm -rf "${here:?}/$name"
    (cd "$work" && "$python" "$here/make.py" "$1" "$here/$name") # llm-compressor leaves logs
    rm -f "$here/$name/generation_config.json"
}

# The first compressed-tensors release line: sparse-bitmask.
checkpoint llmcompressor 0.1.0 llmcompressor==0.1.0 compressed-tensors==0.5.0 \
    transformers==4.44.2 datasets==2.21.0 accelerate==0.34.2 pyarrow==17.0.0
# The last but one that wrote 2:4: sparse-24-bitmask.
checkpoint llmcompressor 0.5.1 llmcompressor==0.5.1 compressed-tensors==0.9.4 \
    transformers==4.51.3 datasets==3.6.0 accelerate==1.7.0 pyarrow==17.0.0
# Tools that write zeros.
checkpoint modelopt 0.47.0 nvidia-modelopt==0.47.0 requests accelerate transformers==5.24.0
checkpoint torchao 0.18.0 torchao==0.18.0 transformers==5.24.0
