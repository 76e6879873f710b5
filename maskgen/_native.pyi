"""
Fused kernels for learning masks, 2:4 where nothing else is said;
maskgen/learning/native.py chooses them.

Weights, masked weights and their gradients are (rows, inputs), all bfloat16 or all float32;
logits and their gradients (rows, 6 or 4, inputs / 4) float32; codes (rows, inputs / 4).
ValueError where they do not fit together.
"""

from typing import Annotated

import torch


def isa() -> str:
    """The instruction set of this process; ValueError for a bad TWOFOUR_ISA."""

def gumbel_forward(weight: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], masked: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], scale: float, tau: float, seed: int, step: int, micro_batch: int, layer: int) -> None:
    """Writes `masked` by MaskLLM's relaxation."""

def gumbel_backward(weight: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], masked_gradient: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], gradient: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], scale: float, tau: float, regularisation: float, seed: int, step: int, micro_batch: int, layer: int) -> None:
    """Adds to the logits' `gradient` what the masked weight's gives."""

def topk_forward(weight: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], masked: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], scale: float, tau: float, seed: int, step: int, micro_batch: int, layer: int) -> None:
    """Writes `masked` by RoI's relaxation."""

def topk_backward(weight: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], masked_gradient: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], gradient: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], scale: float, tau: float, regularisation: float, seed: int, step: int, micro_batch: int, layer: int) -> None:
    """Adds to the logits' `gradient` what the masked weight's gives."""

def entropic_forward(weight: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], masked: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], n: int, scale: float, tau: float, seed: int, step: int, micro_batch: int, layer: int) -> None:
    """
    Writes `masked` by the entropic top n of each group of as many weights as there are planes of logits.
    """

def entropic_backward(weight: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], masked_gradient: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], gradient: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], n: int, scale: float, tau: float, regularisation: float, seed: int, step: int, micro_batch: int, layer: int) -> None:
    """Adds to the logits' `gradient` what the masked weight's gives."""

def keep_top(logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], kept: Annotated[torch.Tensor, dict(dtype='uint8', shape=(None, None), order='C', device='cpu')], n: int) -> None:
    """
    Writes 1 to `kept`, (rows, inputs), for the n largest of each group, else 0.
    """

def sample_forward(weight: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], masked: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], seed: int, step: int, micro_batch: int, layer: int) -> None:
    """Writes `masked` by MaskPro's sampling."""

def sample_update(logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], rate: float, seed: int, step: int, micro_batch: int, layer: int) -> None:
    """
    Adds to the logits `rate` times the gradient of the sample's log-probability.
    """

def decide(logits: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], codes: Annotated[torch.Tensor, dict(dtype='uint8', shape=(None, None), order='C', device='cpu')], compare: Annotated[torch.Tensor, dict(dtype='uint8', shape=(None, None), order='C', device='cpu')], scale: float) -> tuple[int, float]:
    """
    Writes the best `codes`; (how many are not those of `compare`, summed sharpness).
    """

def fake_quantise(weight: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None), order='C', device='cpu')], keep: Annotated[torch.Tensor, dict(dtype='uint8', shape=(None, None), order='C', device='cpu')], out: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None), order='C', device='cpu')], block: int, int4: bool, minima: bool) -> None:
    """
    Writes the kept weights' nearest values on the grid of their block, 0 for the others; all (rows, inputs).
    """

def order_gradient(scores: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], slopes: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], places: Annotated[torch.Tensor, dict(dtype='int64', shape=(None, None), order='C', device='cpu')], found: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None, None), order='C', device='cpu')], n: int, m: int) -> None:
    """
    Writes to `found`, (blocks, size, size), what the loss changes by when a channel stands at a place, summed over the rows of `scores` and `slopes`, (blocks, rows, size); `places` has the channels in their present order, (blocks, size).
    """

def rms_norm(x: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], weight: Annotated[torch.Tensor, dict(shape=(None,), order='C', device='cpu')], epsilon: float, out: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], scales: Annotated[torch.Tensor, dict(dtype='float32', shape=(None,), order='C', device='cpu')]) -> None:
    """
    Writes to `out` the rows of `x`, (rows, size), over their root mean square and times `weight`, (size); to `scales`, (rows), what they were multiplied by.
    """

def rms_norm_gradient(x: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], weight: Annotated[torch.Tensor, dict(shape=(None,), order='C', device='cpu')], scales: Annotated[torch.Tensor, dict(dtype='float32', shape=(None,), order='C', device='cpu')], gradient: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], out: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """
    Writes to `out` the gradient of `x`, given that of what `rms_norm` wrote.
    """

def sampled_products(gradient: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], inputs: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], numbers: Annotated[torch.Tensor, dict(dtype='int64', shape=(None,), order='C', device='cpu')], out: Annotated[torch.Tensor, dict(dtype='float32', shape=(None, None), order='C', device='cpu')]) -> None:
    """
    Adds to `out`, (groups, m), those entries of gradient^T inputs that belong to the groups of these `numbers` (row by row). `gradient` is (tokens, rows), `inputs` (tokens, inputs).
    """

def next_token_loss(logits: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')], targets: Annotated[torch.Tensor, dict(dtype='int64', shape=(None,), order='C', device='cpu')], teacher: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')] | None, share: float, scale: float, gradient: Annotated[torch.Tensor, dict(shape=(None, None), order='C', device='cpu')] | None) -> tuple[float, float]:
    """
    Loss of the next tokens and divergence from the teacher, each summed over the positions whose target is not negative; `gradient` becomes `scale` times that of (1 - share) * loss + share * divergence. Logits, teacher and gradient are (positions, vocabulary).
    """
