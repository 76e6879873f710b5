"""A mask: which weights of which layers of one base model are kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes, Keep, check_codes, keep_from_codes

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LAYER_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class MaskFileError(ValueError):
    """A mask or mask file is malformed, or does not belong to what it is used with."""


@dataclass(frozen=True, eq=False)
class Mask:
    """An N:M mask of some linear layers of one base model; layers it does not list stay dense.

    Attributes:
        codes: layer name (a Hugging Face module name such as `model.layers.0.mlp.up_proj`) ->
            (N, K/M) placement codes of its (N, K) weight, in the type that
            `maskgen.format.placements.code_dtype` gives. Held sorted by name, read-only.
        base_digest: digest of the base model's tensors (`maskgen.format.digests.base_digest`).
        method: what made the mask, as the registry names it.
        domain: what kind of text it was made for.
        calibration_digest: SHA-256 of the text it was made from; None if it took none.
        seed: of the random numbers that went into it.
        parent_digest: digest of the mask that this one is stored as a difference to.
        pattern: of all layers.
        decoder_weights: weights of the decoder that the layers belong to, masked or not (see
            `maskgen.format.coverage`); None if the file does not say.

    Raises:
        MaskFileError: a field is malformed.
    """

    codes: Mapping[str, Codes]
    base_digest: str
    method: str
    domain: str
    calibration_digest: str | None
    seed: int
    parent_digest: str | None = None
    pattern: Pattern = TWO_FOUR
    decoder_weights: int | None = None

    def __post_init__(self) -> None:
        check_digest("base_digest", self.base_digest)
        if self.calibration_digest is not None:
            check_digest("calibration_digest", self.calibration_digest)
        if self.parent_digest is not None:
            check_digest("parent_digest", self.parent_digest)
        _check_label("method", self.method)
        _check_label("domain", self.domain)
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise MaskFileError(f"seed {self.seed!r} is not an integer from 0 to 2**64 - 1")
        if not self.codes:
            raise MaskFileError("a mask lists at least one layer; this one lists none")
        checked = {
            name: _checked(name, self.codes[name], self.pattern) for name in sorted(self.codes)
        }
        object.__setattr__(self, "codes", checked)
        if self.decoder_weights is not None and self.decoder_weights < self.weights:
            raise MaskFileError(
                f"the mask covers {self.weights} weights of a decoder of {self.decoder_weights}"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Layer name -> (N, K) of its weight."""
        return {
            name: (codes.shape[0], codes.shape[1] * self.pattern.m)
            for name, codes in self.codes.items()
        }

    @property
    def weights(self) -> int:
        """Weights that the mask covers, kept and dropped."""
        return sum(codes.size for codes in self.codes.values()) * self.pattern.m

    def keep(self, layer: str) -> Keep:
        """(N, K) of a layer's weight, True = kept."""
        return keep_from_codes(self.codes[layer], self.pattern)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pattern, base digest and every layer's name, shape and codes.

        Labels (method, domain, seed, ...) and the way of storage do not enter: masks that keep
        the same weights of the same model have the same digest.
        """
        sha = hashlib.sha256(f"{self.pattern}\n{self.base_digest}\n".encode())
        for name, (n, k) in self.shapes.items():
            codes = self.codes[name]
            sha.update(f"{name}\n{n},{k}\n".encode())
            sha.update(codes.astype(codes.dtype.newbyteorder("<"), copy=False).data)
        return sha.hexdigest()


def check_pattern(mask: Mask, pattern: Pattern, where: str) -> None:
    """Raise MaskFileError unless `mask`, which comes from `where`, has the pattern."""
    if mask.pattern != pattern:
        raise MaskFileError(f"{where} holds a {mask.pattern} mask, expected {pattern}")


def check_layer_name(name: str) -> None:
    """Raise MaskFileError unless `name` is a module's."""
    if len(name) > 512 or not _LAYER_NAME.fullmatch(name):
        raise MaskFileError(f"{name[:80]!r} is not a module name")


def check_base(mask: Mask, digest: str, model: str) -> None:
    """Raise MaskFileError unless the mask was made for the model with this base digest."""
    if mask.base_digest != digest:
        raise MaskFileError(
            f"the mask belongs to the base model {mask.base_digest[:16]}..., "
            f"but {model} is {digest[:16]}...; use the model it was made for, which"
            " --transform makes if a transform lies beside the mask"
        )


def check_digest(field: str, value: object) -> None:
    """Raise MaskFileError unless `value` is a SHA-256 in hexadecimal."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise MaskFileError(f"{field} {value!r:.80} is not a SHA-256 in hexadecimal")


def _checked(name: str, codes: Codes, pattern: Pattern) -> Codes:
    check_layer_name(name)
    if codes.ndim != 2 or not codes.size:
        raise MaskFileError(
            f"layer {name}: codes of shape {codes.shape}, expected (N, K/{pattern.m})"
        )
    try:
        check_codes(codes, pattern)
    except ValueError as error:
        raise MaskFileError(f"layer {name}: {error}") from None
    fixed = np.ascontiguousarray(codes).view()
    fixed.flags.writeable = False
    return fixed


def _check_label(field: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise MaskFileError(
            f"{field} {value!r:.80} is not a label of 1 to 200 printable characters"
        )
