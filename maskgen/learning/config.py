"""Settings of a learning run. Unknown names are refused; attribute docstrings say what each is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from maskgen.learning.native import Kernels

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class RunConfig(BaseModel):
    """What every run of the loop takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    steps: Count = 2000
    """Optimiser steps (forward passes, for maskpro)."""
    sequence_length: Annotated[int, Field(ge=2)] = 2048
    """Tokens in a sequence."""
    batch_size: Count = 1
    """Sequences in a micro-batch; in mask learning each micro-batch draws its own noise."""
    micro_batches: Count = 1
    """Micro-batches in a step, over all ranks."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random: the order of the text, and noise and initial logits of masks."""
    checkpoint_every: Count = 25
    """Steps between checkpoints."""
    log_every: Count = 10
    """Steps between measurements of how far masks or weights have moved."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step learns from, over all ranks."""
        return self.sequence_length * self.batch_size * self.micro_batches


class LearnConfig(RunConfig):
    """What every learned method takes."""

    kernels: Kernels = "auto"
    """native, torch, or auto: native wherever it applies."""


class GradientConfig(LearnConfig):
    """What methods that backpropagate add: AdamW with MaskLLM's defaults (its Table 7)."""

    learning_rate: Positive = 5e-4
    """Peak learning rate of the logits."""
    final_learning_rate: NotNegative = 5e-5
    """Learning rate that the cosine ends at."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first decay."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's second decay."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NotNegative = 0.1
    """Decoupled decay of the logits."""
    clip: Positive = 1.0
    """Largest gradient norm, over all logits."""
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of KL(dense model || masked model) in the loss; the rest is cross entropy on text."""
    active_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of groups that are learned on after `active_after` steps, those whose decision is the
    closest; the others are decided then. Below 1, AdamW has no moments until then."""
    active_after: Count = 25
    """Steps after which that happens."""
    sequences_at_once: Annotated[int, Field(ge=0)] = 0
    """Sequences of a micro-batch that go through the model together, all under the same noise: the
    fewer, the less memory. 0 for all."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    divergence: Positive = 3.0
    """Stop when the smoothed loss is this many nats above its lowest value."""
