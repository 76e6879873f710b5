#!/usr/bin/env bash
# A model of Llama-3.2-1B's size on one GPU of 80 GB: basis, learned 2:4 mask, recovered weights.
# Not run: no GPU was at hand. Estimated from 6 (learning) and 8 (recovery) operations a weight and
# token at 40 % of an H100's bf16 rate: 131 M tokens of learning 0.7 hours, 262 M of recovery 2
# hours, and half an hour for the rest. Learning holds 16 bytes of state a weight (16 GB).
# usage: recipes/llama-1b-one-gpu.sh MODEL TRAIN HELD_OUT OUT (gpu-steps.bash says what they are)
set -euo pipefail
. "$(dirname "$0")/gpu-steps.bash" # sets model, train, held_out and out

find_basis
learn_mask twofour
recover_weights twofour
measure
