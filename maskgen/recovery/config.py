"""Settings of a recovery run. Unknown names are refused; attribute docstrings say what each is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from maskgen.learning.config import Count, NotNegative, Positive, RunConfig

Share = Annotated[float, Field(ge=0, le=1)]


class RecoverConfig(RunConfig):
    """What `twofour recover` takes."""

    steps: Annotated[int, Field(ge=0)] = 400
    """Optimiser steps of end-to-end tuning; 0 for none."""
    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in a sequence of tuning."""
    batch_size: Count = 2
    """Sequences in a micro-batch."""

    weights: bool = True
    """Change the weights that the mask keeps."""
    norms: bool = True
    """Change the gains (and biases) of norms."""
    biases: bool = True
    """Change the biases of linears."""
    embeddings: bool = False
    """Change the embedding, and with it a tied head."""
    rank: Annotated[int, Field(ge=0)] = 0
    """Tune the kept weights by a masked low-rank difference of this rank; 0 for all of them."""

    values: Literal["bf16", "int8", "int4"] = "bf16"
    """Type of the kept weights: int8 and int4 are quantised in the loop (see `quantiser.py`)."""
    block: Annotated[Literal[32, 64, 128], BeforeValidator(int)] = 32
    """Inputs of a row that share a scale, with int8 and int4."""
    minima: bool = False
    """Let int4 blocks have a minimum of their own, in place of a symmetric grid."""

    least_squares: Share = 0.3
    """Share of the layer-wise least squares step that is taken; the whole step overfits a learned
    mask, which already lets the errors of layers cancel."""
    block_steps: Annotated[int, Field(ge=0)] = 0
    """AdamW steps on the outputs of each attention and MLP block."""
    block_learning_rate: Positive = 3e-4
    """Peak learning rate of those steps; it falls linearly to 0."""
    block_batch_size: Count = 2
    """Windows in each of those steps."""
    inputs: Literal["dense", "sparse"] = "dense"
    """What blocks are reconstructed on: the dense model's activations, or those that the blocks
    before, already reconstructed, produce."""
    windows: Count = 24
    """Windows of the text that blocks are reconstructed on."""
    window_length: Annotated[int, Field(ge=2)] = 1024
    """Tokens in one of them."""

    learning_rate: Positive = 4e-4
    """Peak learning rate of tuning."""
    final_learning_rate: NotNegative = 4e-5
    """Learning rate that the cosine ends at."""
    warm_up: Annotated[int, Field(ge=0)] = 10
    """Steps over which the learning rate rises from 0."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first decay."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's second decay."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of what is tuned."""
    clip: Positive = 1.0
    """Largest gradient norm, over all that is tuned."""
    distillation: Share = 0.5
    """Share of KL(dense model || recovered model) in the loss; the rest is cross entropy."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Held-out evaluations without improvement after which tuning stops; 0 for never."""
    divergence: Positive = 3.0
    """Stop when the smoothed loss is this many nats above its lowest value."""

    def block_settings(self) -> dict[str, Any]:
        """The settings that the reconstruction of blocks depends on."""
        return self.model_dump(include=_OF_BLOCKS)

    def groups(self) -> list[str]:
        """Names of the parameter groups that are switched on."""
        return [name for name in GROUPS if getattr(self, name)]


_OF_BLOCKS = {
    *("seed", "weights", "norms", "biases", "values", "block", "minima", "inputs", "windows"),
    *("window_length", "least_squares", "block_steps", "block_learning_rate", "block_batch_size"),
    *("beta1", "beta2", "weight_decay"),
}

GROUPS = ("weights", "norms", "biases", "embeddings")
"""The parameter groups, each a setting of its own."""
