"""How the values of packed weights are made: options of a build, and what they come to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from engines.typed_options import TypedOptions

Values = Literal["bf16", "int8", "int4"]

BLOCKS = (32, 64, 128)
"""Inputs of a row that may share a scale (`engines.native.lowbit` has layouts for these)."""

HEAD_BLOCK = 64
"""Inputs that share a scale in an int8 head: the scales add 3.1 % to its bytes."""

# Short blocks round activations better and take longer: docs/experiments.md weighs the two.
_DEFAULT_BLOCK = {"bf16": 0, "int8": 64, "int4": 32}


class ValueOptions(TypedOptions):
    """What `twofour build` takes about values."""

    values: Values = Field(
        default="bf16", description="Type of the linear layers' weights: `bf16`, `int8` or `int4`."
    )
    block: int | None = Field(
        default=None,
        description="Inputs of a row that share a scale, and of a token: 32, 64 or 128. None: 64"
        " for `int8`, 32 for `int4`.",
    )
    minima: bool | None = Field(
        default=None,
        description="Every block of `int4` has a minimum of its own, in place of a symmetric grid."
        " None: it has.",
    )
    head: Literal["bf16", "int8"] | None = Field(
        default=None,
        description="Type of output head and embedding. None: `int8` where `values` are `int8` or"
        " `int4`, else `bf16`.",
    )

    @field_validator("block")
    @classmethod
    def _known_block(cls, block: int | None) -> int | None:
        if block is not None and block not in BLOCKS:
            raise ValueError("must be 32, 64 or 128")
        return block

    @model_validator(mode="after")
    def _fit_together(self) -> ValueOptions:
        if self.values == "bf16" and self.block is not None:
            raise ValueError("bf16 values have no block: choose int8 or int4")
        if self.values != "int4" and self.minima:
            raise ValueError(f"{self.values} values have no minima: int4 has")
        return self

    @property
    def block_inputs(self) -> int:
        """Inputs that share a scale; 0 for bf16."""
        return self.block or _DEFAULT_BLOCK[self.values]

    @property
    def has_minima(self) -> bool:
        """Whether blocks have minima of their own."""
        return self.values == "int4" and self.minima is not False

    @property
    def head_values(self) -> Literal["bf16", "int8"]:
        """Type of head and embedding."""
        return self.head or ("bf16" if self.values == "bf16" else "int8")

    @property
    def plain(self) -> bool:
        """Whether all is bf16."""
        return self.values == "bf16" and self.head_values == "bf16"


BF16_VALUES = ValueOptions()
"""All bf16, as the model is."""
