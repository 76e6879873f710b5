"""Options of the reference engine."""

from __future__ import annotations

from pydantic import Field

from engines.typed_options import CommonOptions


class ReferenceOptions(CommonOptions):
    """How to run an engine directory of target `reference`."""

    max_requests: int = Field(64, ge=1, description="Requests that may be in progress at once.")
    device: str = Field(
        "cpu",
        description="Where the model runs: `cpu`, or a GPU with sparse tensor cores (`cuda:1`).",
    )
