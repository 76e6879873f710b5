"""Hugging Face models for computation in torch, optionally with a mask applied."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from maskgen.experts import split_experts
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.model_directory import ModelDirectoryError, read_model_config
from maskgen.format.weight_files import (
    StoredTensor,
    refuse_other_size,
    refuse_other_weights,
    stored_tensors,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO_DTYPE = "auto"
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
_ROWS = 256  # fp32 copies of the logits are made for this many positions at a time


def resolve_dtype(dtype: str, device: str | None = None) -> str:
    """The number type to compute in: `dtype` itself, or what `auto` means on a device.

    `auto` is bf16 on accelerators and on CPUs with bf16 instructions, and fp32 elsewhere: without
    them torch's bf16 products are emulated, 5 to 80 times slower than fp32 on AVX2. The weights of
    a bf16 checkpoint are the same numbers in both.

    Raises:
        ValueError: unknown dtype.
    """
    if dtype == AUTO_DTYPE:
        on_cpu = resolve_device(device).startswith("cpu")
        return "fp32" if on_cpu and not torch.cpu._is_avx512_bf16_supported() else "bf16"
    if dtype not in TORCH_DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {AUTO_DTYPE}, {', '.join(TORCH_DTYPES)}")
    return dtype


def resolve_device(device: str | None = None) -> str:
    """A torch device: the one that is named, or CUDA if there is one.

    Under torchrun every rank of a node has a GPU of its own, the one of its `LOCAL_RANK`.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if chosen == "cuda" and rank is not None else chosen


def check_device(device: str) -> None:
    """Raise ValueError unless torch has this device here."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # not built for it, not there, no such name
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from error


def dtype_name(model: PreTrainedModel) -> str:
    """The model's number type as commands and results call it."""
    return next(name for name, dtype in TORCH_DTYPES.items() if dtype == model.dtype)


def load_model(directory: Path, dtype: str, device: str | None = None) -> PreTrainedModel:
    """A causal language model in evaluation mode, without gradients.

    Its experts, if it has any, are linears of the names that the files give them.

    Args:
        directory: as `maskgen.models.resolve_model` gives it.
        dtype: `bf16`, `fp32`, `fp16` or `auto` (see `resolve_dtype`).
        device: a torch device; by default CUDA if there is one.

    Raises:
        ModelDirectoryError: a file is missing or malformed, the weights are quantised or not those
            of the architecture, or `transformers` cannot load it.
        ValueError: unknown dtype, or a device that is not there.
    """
    place = resolve_device(device)
    check_device(place)
    chosen = TORCH_DTYPES[resolve_dtype(dtype, device)]
    read_model_config(directory)
    stored = stored_tensors(directory)
    from transformers import AutoModelForCausalLM

    with _one_line_errors(directory):
        _refuse_other_size(directory, stored)
        loader: Any = AutoModelForCausalLM
        model, found = loader.from_pretrained(
            directory,
            dtype=chosen,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # only to name them below
            output_loading_info=True,
        )
    refuse_other_weights(directory, found["missing_keys"], found["unexpected_keys"])
    for name, shape, expected in sorted(found["mismatched_keys"]):
        raise ModelDirectoryError(
            f"{directory}: {name} has shape {tuple(shape)}, config.json says {tuple(expected)}"
        )
    split_experts(model, stored)
    model.to(place)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def stated_context(directory: Path) -> int | None:
    """Most tokens of one sequence of the model in a directory; None if it states none."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    config = config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens of one sequence (`max_position_embeddings`); None if the model states none."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def check_tokens(model: PreTrainedModel, tokens: Sequence[int] | npt.NDArray[np.int32]) -> None:
    """Raise ValueError unless the model has an embedding and a position for every token.

    Args:
        model: of `load_model`.
        tokens: (length,) or (windows, length) token ids.
    """
    ids = np.asarray(tokens)
    embedding: Any = model.get_input_embeddings()
    positions, vocabulary = context_length(model), embedding.weight.shape[0]
    if positions is not None and ids.shape[-1] > positions:
        raise ValueError(
            f"a window of {ids.shape[-1]} tokens is longer than the model's context of {positions}"
            f" (max_position_embeddings); use windows of at most {positions}"
        )
    if ids.size and (stray := int(ids.max())) >= vocabulary:
        raise ValueError(
            f"token id {stray} is beyond the model's vocabulary of {vocabulary}: the tokenizer has"
            " tokens that the model's embedding lacks; use the tokenizer it was trained with, or"
            " resize the embedding"
        )


def _refuse_other_size(directory: Path, stored: Mapping[str, StoredTensor]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    refuse_other_size(directory, stored, layers=config.get_text_config().num_hidden_layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = sum(parameter.numel() for parameter in model.parameters())
    refuse_other_size(directory, stored, weights=described)


@contextmanager
def _one_line_errors(directory: Path) -> Iterator[None]:
    """Let transformers show neither progress nor reports, and fail in one line."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # commands show their own
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except ModelDirectoryError:
        raise
    except Exception as error:  # transformers passes on whatever a strange config.json leads to
        reason = textwrap.shorten(str(error), 300) or type(error).__name__
        raise ModelDirectoryError(f"transformers cannot load {directory}: {reason}") from error
    finally:
        logging.set_verbosity(before)


@torch.no_grad()
def apply_to_module(model: nn.Module, mask: Mask) -> None:
    """Set the weights that `mask` drops to zero, in place.

    Raises:
        MaskFileError: a layer of the mask is not a linear of the model, or has another shape.
    """
    modules = dict(model.named_modules())
    for name, (n, k) in mask.shapes.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            raise MaskFileError(f"the mask lists {name}, which is no linear layer of the model")
        if tuple(module.weight.shape) != (n, k):
            raise MaskFileError(
                f"layer {name}: the mask is for {n}x{k}, the model has "
                f"{module.weight.shape[0]}x{module.weight.shape[1]}"
            )
    for name in mask.codes:
        weight = modules[name].weight
        keep = torch.from_numpy(mask.keep(name)).to(weight.device)
        weight.masked_fill_(~keep, 0)


class TorchScorer:
    """Scores windows with a model in torch; a `evaluation.perplexity.Scorer`.

    Logits are computed in the model's type, as the standard scripts do, and turned into
    log-probabilities in fp32. Windows that `check_tokens` refuses raise ValueError.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[int]) -> float:
        total = 0.0
        for rows, targets in self._rows(tokens):
            total -= float(F.cross_entropy(rows, targets, reduction="sum"))
        return total

    @torch.inference_mode()
    def tokens(self, tokens: Sequence[int]) -> list[tuple[float, bool]]:
        """For every token but the first: its log-probability, and whether it is the likeliest."""
        found: list[tuple[float, bool]] = []
        for rows, targets in self._rows(tokens):
            logprobs = -F.cross_entropy(rows, targets, reduction="none")
            likeliest = rows.argmax(-1) == targets
            found += zip(logprobs.tolist(), likeliest.tolist(), strict=True)
        return found

    def _rows(self, tokens: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits in fp32 and the tokens they should predict, some positions at a time."""
        check_tokens(self._model, tokens)
        ids = torch.tensor(tokens, device=self._model.device)
        logits = self._model(ids[None, :], use_cache=False).logits[0, :-1]
        for rows, targets in zip(
            torch.split(logits, _ROWS), torch.split(ids[1:], _ROWS), strict=True
        ):
            yield rows.float(), targets
