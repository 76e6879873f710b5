"""A GGUF file as an ordinary model directory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from maskgen.format.container import TensorBytes, write_tensors
from maskgen.format.json_file import write_json
from maskgen.format.model_directory import CONFIG_FILE, WEIGHTS_FILE
from maskgen.gguf_model.config import architecture_of, model_config
from maskgen.gguf_model.header import read_gguf_header
from maskgen.gguf_model.tensors import planned_tensors, stored_type
from maskgen.gguf_model.vocabulary import write_vocabulary

_DTYPES: dict[str, Any] = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}


def write_model_directory(gguf: Path, directory: Path) -> None:
    """Make a model directory of a GGUF file, tensor by tensor.

    Weights keep their type where all matrices are bf16, f16 or f32, and become bf16 where the file
    is quantised. Memory holds some millions of values at a time.

    Args:
        gguf: the file.
        directory: is made; must not exist.

    Raises:
        GgufError: the file is damaged, or holds what cannot be said in a model directory.
    """
    header = read_gguf_header(gguf)
    architecture, config = architecture_of(header), model_config(header)
    planned, kind = planned_tensors(header, architecture, config), stored_type(header)
    dtype = np.dtype(_DTYPES[kind])
    directory.mkdir(parents=True)
    write_vocabulary(header, directory)
    config["dtype"] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[kind]
    write_json(directory / CONFIG_FILE, config)
    ends = {name: config[name] for name in config if name.endswith("_token_id")}
    write_json(directory / "generation_config.json", ends)

    def chunks(name: str) -> Iterator[memoryview]:
        for rows in planned[name].values(header):
            yield np.ascontiguousarray(rows.astype(dtype)).view(np.uint8).data

    tensors = {
        name: TensorBytes(kind, tensor.source.shape, partial(chunks, name))
        for name, tensor in planned.items()
    }
    write_tensors(directory / WEIGHTS_FILE, {"format": "pt"}, tensors)
