"""Loads a model with transformers, held to what its files say."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from engines.errors import EngineDirectoryError, as_engine_directory_error
from maskgen.format.weight_files import refuse_other_size, refuse_other_weights, stored_tensors


def load_transformers_model(directory: Path, dtype: torch.dtype) -> Any:
    """The model of a directory, on the CPU.

    Raises:
        EngineDirectoryError: transformers cannot load it, or its files hold other weights.
    """
    _skeleton(directory)
    loader: Any = transformers.AutoModelForCausalLM
    with _one_line_errors(directory):
        model, found = loader.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    with as_engine_directory_error():
        refuse_other_weights(directory, found["missing_keys"], found["unexpected_keys"])
    return model


def _skeleton(directory: Path) -> torch.nn.Module:
    """The model that config.json describes, without weights.

    Raises:
        EngineDirectoryError: transformers has no such model, or it is far larger than the files.
    """
    with as_engine_directory_error():
        stored = stored_tensors(directory)
    with _one_line_errors(directory):
        config = transformers.AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        layers = config.get_text_config().num_hidden_layers
    with as_engine_directory_error():
        refuse_other_size(directory, stored, layers=layers)
    with _one_line_errors(directory), torch.device("meta"):
        model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=False
        )
    with as_engine_directory_error():
        refuse_other_size(directory, stored, weights=sum(p.numel() for p in model.parameters()))
    return model


@contextmanager
def _one_line_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers passes on whatever a strange config.json leads to
        reason = textwrap.shorten(str(error), 300) or type(error).__name__
        raise EngineDirectoryError(
            f"transformers {transformers.__version__} cannot load {directory}: {reason}"
        ) from error
