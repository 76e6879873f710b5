"""Checkpoints of a learning run: safetensors and JSON in a folder that appears whole or not at all.

    RUN/checkpoint-000125/state.json                      step, settings, running statistics
                          logits.safetensors              all logits
                          optimiser-00000-of-00002.safetensors    one per rank

A checkpoint is written under a temporary name and renamed, so a killed run leaves the last complete
one. Resuming reads the newest and refuses when model, prior, text or settings are not the same.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from maskgen.learning.distributed import World

FORMAT_VERSION = 1
_NAME = re.compile(r"checkpoint-(\d{6,})")


class CheckpointError(ValueError):
    """A run cannot be resumed from what its folder holds."""


@dataclass(slots=True)
class RunState:
    """The part of a checkpoint that is not tensors.

    Attributes:
        step: steps done.
        identity: settings and digests; must be equal for a run to go on.
        statistics: smoothed loss and the like.
    """

    step: int
    identity: dict[str, Any]
    statistics: dict[str, float] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, root: Path, world: World, keep: int = 2) -> None:
        self.root = root
        self.world = world
        self._keep = keep

    def save(
        self, state: RunState, logits: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]
    ) -> Path:
        """Write a checkpoint; all ranks call it, each with its own optimiser tensors."""
        final = self.root / f"checkpoint-{state.step:06d}"
        scratch = self.root / f".{final.name}.tmp"
        if self.world.first:
            self.root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
        self.world.barrier()
        shard = f"optimiser-{self.world.rank:05d}-of-{self.world.size:05d}.safetensors"
        save_file(dict(optimiser), scratch / shard)
        if self.world.first:
            save_file(dict(logits), scratch / "logits.safetensors")
            text = {
                "format_version": FORMAT_VERSION,
                "step": state.step,
                "identity": state.identity,
                "statistics": state.statistics,
            }
            (scratch / "state.json").write_text(json.dumps(text, indent=1), encoding="utf-8")
        self.world.barrier()
        if self.world.first:
            if final.exists():
                shutil.rmtree(final)
            scratch.rename(final)
            for old in self._complete()[: -self._keep]:
                shutil.rmtree(old)
        self.world.barrier()
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = self._complete()
        return complete[-1] if complete else None

    def load(self, identity: Mapping[str, Any]) -> tuple[RunState, dict[str, Tensor], Any] | None:
        """State, logits and a function that reads the optimiser's tensors; None without checkpoint.

        Raises:
            CheckpointError: the checkpoint belongs to another run or is damaged.
        """
        path = self.latest()
        if path is None:
            return None
        try:
            raw = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if raw["format_version"] != FORMAT_VERSION:
                raise CheckpointError(
                    f"{path} has format version {raw['format_version']}, this reads "
                    f"{FORMAT_VERSION}; finish that run with the release that began it"
                )
            state = RunState(int(raw["step"]), raw["identity"], raw["statistics"])
            logits = load_file(path / "logits.safetensors")
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it to go on") from error
        wanted = json.loads(json.dumps(identity))
        for name in sorted(wanted.keys() | state.identity.keys()):
            old, new = state.identity.get(name), wanted.get(name)
            if old != new:
                raise CheckpointError(
                    f"{path} belongs to another run: {name} was {old!r} and is now {new!r}; "
                    "resume with the old value or choose another run folder"
                )
        return state, logits, lambda: _optimiser_tensors(path)

    def _complete(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        found = [(m, p) for p in self.root.iterdir() if (m := _NAME.fullmatch(p.name))]
        return [p for _, p in sorted(found, key=lambda item: int(item[0][1]))]


def _optimiser_tensors(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in sorted(path.glob("optimiser-*.safetensors")):
        tensors |= load_file(shard)
    return tensors
