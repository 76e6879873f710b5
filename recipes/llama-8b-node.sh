#!/usr/bin/env bash
# A model of Llama-3.1-8B's size on a node of eight GPUs of 141 GB (80 GB are too few: mask logits
# and their gradients alone are 56 GB on every GPU, the weights 16). Not run: no GPU was at hand.
# Estimated as in llama-1b-one-gpu.sh: learning 0.6 hours, recovery 1.5 hours, and an hour on one
# GPU for the rest.
# usage: recipes/llama-8b-node.sh MODEL TRAIN HELD_OUT OUT (gpu-steps.bash says what they are)
set -euo pipefail
. "$(dirname "$0")/gpu-steps.bash" # sets model, train, held_out and out

ranks=(torchrun --standalone --nproc-per-node "${GPUS:-8}" -m twofour.cli)
find_basis
learn_mask "${ranks[@]}"
recover_weights "${ranks[@]}"
measure
