"""Which mask a request names."""

from __future__ import annotations

import json


def named_mask(body: bytes) -> str:
    """The mask that a request names, in `mask` or after the colon of `model`; else empty.

    What is no JSON object names none: a replica refuses it in the server's words.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    mask, model = fields.get("mask"), fields.get("model")
    if isinstance(mask, str):
        return mask
    return model.rpartition(":")[2] if isinstance(model, str) and ":" in model else ""
