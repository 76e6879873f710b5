"""Scaled ropes of GGUF files, as config.json says them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from maskgen.gguf_model.architectures import GgufArchitecture
from maskgen.gguf_model.header import GgufError, GgufHeader
from maskgen.gguf_model.values import pieces

LLAMA3_FREQUENCIES = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192
_ORIGINAL = "original_context_length"


def rope_scaling(
    header: GgufHeader,
    architecture: GgufArchitecture,
    config: Mapping[str, Any],
    scaling: Mapping[str, Any],
) -> dict[str, Any]:
    """The field `rope_scaling`, and what belongs to it; empty for a plain rope.

    Args:
        header: of the file.
        architecture: which says what kinds it has.
        config: the rest of config.json.
        scaling: the keys `rope.scaling.*` by their ends.

    Raises:
        GgufError: the scaling cannot be said in config.json.
    """
    kind, factor = scaling.get("type", "none"), scaling.get("factor", 0.0)
    if LLAMA3_FREQUENCIES in header.tensors and architecture.paired and kind == "none":
        return {"rope_scaling": _llama3(header, config)}
    if LONG_FACTORS in header.tensors and "longrope" in architecture.scaled_rope:
        return _longrope(header, config, scaling)
    # Old files say `linear` with a factor of 0 or 1 for a plain rope.
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {}
    known = {"type", "factor", _ORIGINAL, "finetuned"}
    strange = next((key for key in scaling if key not in known), None)
    if kind not in architecture.scaled_rope or kind == "longrope" or strange or not factor > 0:
        raise GgufError(
            f"{header.path}: a rope scaled by {dict(scaling)!r:.120} is not supported for"
            f" {config['model_type']}"
        )
    fields = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        fields["original_max_position_embeddings"] = _original(header, scaling)
    return {"rope_scaling": fields}


def _original(header: GgufHeader, scaling: Mapping[str, Any]) -> int:
    value = scaling.get(_ORIGINAL)
    if type(value) is not int or value < 1:
        raise GgufError(f"{header.path}: rope.scaling.{_ORIGINAL} is {value!r}, expected a number")
    return value


def _vector(header: GgufHeader, name: str, size: int) -> npt.NDArray[np.float32]:
    if name not in header.tensors or header.tensors[name].shape != (size,):
        raise GgufError(f"{header.path} holds no {name} of {size} values")
    (row,) = next(iter(pieces(header.path, header.tensors[name])))
    values: npt.NDArray[np.float32] = row
    return values


def _llama3(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The file has divisors of the frequencies, config.json what they were computed from."""
    head, theta = config["head_dim"], config["rope_theta"]
    stored = _vector(header, LLAMA3_FREQUENCIES, head // 2)
    fields = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
        **_LLAMA3,
    }
    if not np.allclose(stored, _llama3_divisors(head, theta, fields), rtol=1e-4, atol=0):
        raise GgufError(
            f"{header.path}: {LLAMA3_FREQUENCIES} is not Llama 3's of the factor"
            f" {fields['factor']}: such ropes are not supported"
        )
    return fields


def _llama3_divisors(head: int, theta: float, fields: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """`_compute_llama3_parameters` of transformers (modeling_rope_utils.py)."""
    length = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    context, factor = fields["original_max_position_embeddings"], fields["factor"]
    low, high = fields["low_freq_factor"], fields["high_freq_factor"]
    smooth = np.clip((context / length - low) / (high - low), 0, 1)
    divisors: npt.NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def _longrope(
    header: GgufHeader, config: Mapping[str, Any], scaling: Mapping[str, Any]
) -> dict[str, Any]:
    pairs = round(config["head_dim"] * config["partial_rotary_factor"]) // 2
    original, context = _original(header, scaling), config["max_position_embeddings"]
    share = max(1.0, context / original)
    expected = math.sqrt(1 + math.log(share) / math.log(original))
    if not math.isclose(scaling.get("attn_factor", expected), expected, rel_tol=1e-5):
        raise GgufError(
            f"{header.path}: rope.scaling.attn_factor is {scaling['attn_factor']}, expected"
            f" {expected} of a longrope from {original} to {context} positions"
        )
    factors = {
        f"{name}_factor": [float(str(one)) for one in _vector(header, tensor, pairs)]
        for name, tensor in (("long", LONG_FACTORS), ("short", SHORT_FACTORS))
    }
    return {
        "original_max_position_embeddings": original,
        "rope_scaling": {"rope_type": "longrope", **factors},
    }
