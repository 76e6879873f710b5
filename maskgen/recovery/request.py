"""What recovery is asked for, what it gives back, and what makes no sense to ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maskgen.format.mask import Mask
from maskgen.recovery.config import GROUPS, RecoverConfig
from maskgen.texts.text_sets import TextSet


@dataclass(frozen=True, slots=True)
class RecoverRequest:
    """What recovery needs besides model, mask and text.

    Attributes:
        config: settings.
        folder: checkpoints and logs, a folder for each of the two stages.
        checkpoint: the model directory to write.
        resume: go on from the newest checkpoint.
        dtype: to compute in: `bf16`, `fp32` or `auto` (`torch_model.resolve_dtype`); what is tuned
            is fp32 always.
        device: torch device; by default CUDA if there is one.
        tensorboard: folder for event files.
        held_out: text that decides which step was best, and when to stop.
        held_out_every: steps between evaluations on it.
        held_out_windows: windows of that text that are used, spread evenly.
        teacher: the dense model's directory, if it is not the one that is recovered.
    """

    config: RecoverConfig
    folder: Path
    checkpoint: Path
    resume: bool = False
    dtype: str = "auto"
    device: str | None = None
    tensorboard: Path | None = None
    held_out: TextSet | None = None
    held_out_every: int = 25
    held_out_windows: int = 16
    teacher: Path | None = None


@dataclass(frozen=True, slots=True)
class RecoverResult:
    """A finished recovery.

    Attributes:
        digest: base digest of the new model directory.
        mask: the mask that was given, for that directory; None if there was none.
        tokens: tokens that tuning saw, and those that blocks were reconstructed on.
        seconds: wall time of all steps; those before a resumption included.
        best_step: step of tuning that was kept; None if held-out text did not decide.
        first: whether this is the rank that wrote the directory.
    """

    digest: str
    mask: Mask | None
    tokens: int
    seconds: float
    best_step: int | None
    first: bool = True


def check_request(request: RecoverRequest, mask: Mask | None) -> None:
    """Raise ValueError, or FileExistsError, for what cannot be meant."""
    config = request.config
    if mask is None:
        _check_without_mask(request)
    elif request.teacher is not None:
        raise ValueError(
            "a mask is recovered against the model it belongs to: give a mask or a teacher, not"
            " both"
        )
    if config.rank and config.values != "bf16":
        raise ValueError(
            f"rank {config.rank} and values {config.values} do not go together: a low-rank"
            " difference leaves the grid; give one of them"
        )
    if not config.groups():
        raise ValueError(
            f"every group of parameters is switched off ({', '.join(GROUPS)}): nothing could"
            " change; switch one on"
        )
    if not config.steps and (mask is None or not reconstructs(config)):
        raise ValueError(
            "steps is 0 and no block is reconstructed: nothing would change; give steps, or"
            " least_squares or block_steps with weights on"
        )
    if config.patience and request.held_out is None:
        raise ValueError(f"patience {config.patience} needs held-out text: give it, or patience 0")
    if request.checkpoint.exists() and not request.resume:
        raise FileExistsError(f"{request.checkpoint} exists already; name a new directory")


def _check_without_mask(request: RecoverRequest) -> None:
    config = request.config
    if request.teacher is None:
        raise ValueError(
            "without a mask, the model that this one was made of has to teach it: give a teacher,"
            " or a mask"
        )
    asked = "least_squares" in config.model_fields_set  # its default is for masks
    for name, value, unused in (
        ("rank", config.rank, 0),
        ("block_steps", config.block_steps, 0),
        ("least_squares", config.least_squares if asked else 0, 0),
        ("values", config.values, "bf16"),
    ):
        if value != unused:
            raise ValueError(f"{name} {value} needs a mask: without one, all weights are tuned")


def reconstructs(config: RecoverConfig) -> bool:
    """Whether blocks are reconstructed before tuning."""
    return config.weights and bool(config.least_squares or config.block_steps)
