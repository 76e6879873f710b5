"""Steps of MaskLLM on a decoder with random weights: tokens a second, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gpu.decoder import DecoderShape, linears, random_decoder
from benchmarks.gpu.masks import random_codes
from maskgen.learning.distributed import World
from maskgen.learning.gradient_learner import GradientLearner
from maskgen.learning.placement_schedule import Hardening, LogitStart, placement_schedule
from maskgen.learning.relaxation import GumbelPlacements

WARM_UP = 2
"""Steps before the clock runs."""


@dataclass(frozen=True)
class MaskLLMSettings:
    """MaskLLM's settings (arXiv 2409.17481, Table 7), for a run of a few steps."""

    steps: int = 20
    length: int = 2048
    batch_size: int = 1
    micro_batches: int = 1
    seed: int = 0
    learning_rate: float = 5e-4
    final_learning_rate: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    distillation: float = 0.0
    active_share: float = 1.0
    active_after: int = 25
    sequences_at_once: int = 0
    activation_checkpointing: bool = False
    kappa: tuple[float, float] = (100.0, 500.0)
    tau: tuple[float, float] = (4.0, 0.05)
    sigma: float = 0.01
    alpha: float = 3.0
    regularisation: float = 1e-5


def measure_learning(
    shape: DecoderShape,
    device: torch.device,
    settings: MaskLLMSettings,
    synchronise: Callable[[], None],
) -> dict[str, Any]:
    """Learn masks of random tokens.

    Returns:
        steps, tokens a step, tokens a second (after `WARM_UP` steps), learned weights, bytes of
        state a weight, most memory in use (None on a CPU), first and last loss, and the share of
        groups whose placement changed.
    """
    model = random_decoder(shape, device)
    prior = {
        name: random_codes(layer.out_features, layer.in_features, device, seed=len(name))
        .cpu()
        .numpy()
        for name, layer in linears(model).items()
    }
    relaxation = GumbelPlacements(native=None)
    hardening = Hardening(settings.kappa, settings.tau, settings.regularisation, settings.steps)
    start = LogitStart(settings.sigma, settings.alpha, settings.seed)
    schedule = placement_schedule(relaxation, hardening, start)

    def batches(index: int) -> npt.NDArray[np.int64]:
        draw = np.random.default_rng(index)
        return draw.integers(0, shape.vocabulary, (1, settings.length), dtype=np.int64)

    learner = GradientLearner(model, prior, relaxation, schedule, settings, batches, World())
    losses = []
    begin = time.perf_counter()
    for step in range(settings.steps):
        if step == WARM_UP:
            synchronise()
            begin = time.perf_counter()
        losses.append(learner.step(step).loss)
    synchronise()
    seconds = time.perf_counter() - begin
    tokens = settings.length * settings.micro_batches
    on_gpu = device.type == "cuda"
    return {
        "steps": settings.steps,
        "tokens_a_step": tokens,
        "tokens_per_s": (settings.steps - WARM_UP) * tokens / seconds,
        "weights": sum(layer.weight.numel() for layer in learner.layers),
        "state_bytes_a_weight": learner.state_bytes()["total"],
        "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "changed": learner.movement().changed,
    }
