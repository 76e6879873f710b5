"""Checkpoints of a run: safetensors and JSON in a folder that appears whole or not at all.

    RUN/checkpoint-000125/state.json                      step, settings, running statistics
                          learned.safetensors             what is learned: all logits, or weights
                          optimiser-00000-of-00002.safetensors    one per rank
        best.safetensors                                what did best on held-out text, if watched

A checkpoint is written under a temporary name and renamed, so a killed run leaves the last complete
one. Every file carries a checksum of what it holds. Resuming reads the newest checkpoint that is
whole, and refuses when model, prior, text or settings are not the same.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskgen.format.json_file import read_json, write_json
from maskgen.learning.distributed import World

CHECKPOINT_VERSION = 4
_NAME = re.compile(r"checkpoint-(\d{6,})")
_SHARD = re.compile(r"optimiser-\d{5}-of-(\d{5})\.safetensors")
_STATE, _LEARNED, _CHECKSUM = "state.json", "learned.safetensors", "crc32"
_BEST = "best.safetensors"


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or a run cannot be resumed from what its folder holds."""


class _DamagedError(ValueError):
    """A file of a checkpoint is not what was written."""


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


@dataclass(frozen=True, slots=True)
class LearningCheckpoint:
    """A checkpoint that was read and found whole.

    Attributes:
        path: its folder.
        state: everything that is not tensors.
        learned: what is learned: all logits, or weights.
        optimiser: the optimiser's tensors, of all ranks.
    """

    path: Path
    state: RunState
    learned: dict[str, Tensor]
    optimiser: dict[str, Tensor]


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, root: Path, world: World, keep: int = 2) -> None:
        self.root = root
        self.world = world
        self._keep = keep
        self._damaged: set[Path] = set()

    def save(
        self, state: RunState, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]
    ) -> Path:
        """Write a checkpoint; all ranks call it, each with its own optimiser tensors.

        Raises:
            CheckpointError: it cannot be written, as on a full disk; nothing of it is left.
        """
        final = self.root / f"checkpoint-{state.step:06d}"
        scratch = self.root / f".{final.name}.tmp"
        try:
            self._write(scratch, state, learned, optimiser)
            if self.world.first:
                if final.exists():
                    shutil.rmtree(final)
                scratch.rename(final)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(self._not_written(final, error)) from error
        finally:
            if self.world.first:
                shutil.rmtree(scratch, ignore_errors=True)
        self._damaged.discard(final)
        if self.world.first:
            for old in (*self._damaged, *self._complete()[: -self._keep]):
                shutil.rmtree(old, ignore_errors=True)
        self.world.barrier()
        return final

    def save_best(self, learned: Mapping[str, Tensor]) -> None:
        """Keep what did best on held-out text, beside the checkpoints; the first rank writes it.

        Raises:
            CheckpointError: it cannot be written, as on a full disk.
        """
        if not self.world.first:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        final, scratch = self.root / _BEST, self.root / f".{_BEST}.tmp"
        try:
            _write_tensors(scratch, learned)
            scratch.rename(final)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(self._not_written(final, error)) from error
        finally:
            scratch.unlink(missing_ok=True)

    def best(self) -> dict[str, Tensor]:
        """What `save_best` kept.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        try:
            return _read_tensors(self.root / _BEST)
        except _DamagedError as error:
            raise CheckpointError(
                f"{self.root / _BEST} is damaged: {error}; delete {self.root} to begin again"
            ) from error

    def latest(self) -> Path | None:
        """The newest complete checkpoint that was not found damaged."""
        complete = self._complete()
        return complete[-1] if complete else None

    def load(
        self, identity: Mapping[str, Any], report: Callable[[str], None] = lambda line: None
    ) -> LearningCheckpoint | None:
        """The newest checkpoint that is whole; None when the folder holds none at all.

        Args:
            identity: must be equal to the checkpoint's.
            report: told about every damaged checkpoint that is passed over.

        Raises:
            CheckpointError: the checkpoint belongs to another run, or every one is damaged.
        """
        reasons = []
        for path in reversed(self._complete()):
            try:
                state = _read_state(path)
                _check_identity(path, state.identity, identity)
                learned = _read_tensors(path / _LEARNED)
                optimiser: dict[str, Tensor] = {}
                for shard in _shards(path):
                    optimiser |= _read_tensors(shard)
            except _DamagedError as error:
                reasons.append(str(error))
                report(f"{path} is damaged and passed over: {error}")
                self._damaged.add(path)
            else:
                return LearningCheckpoint(path, state, learned, optimiser)
        if reasons:
            raise CheckpointError(
                f"every checkpoint in {self.root} is damaged ({'; '.join(reasons)}); "
                "delete them to begin again"
            )
        return None

    def _write(
        self,
        scratch: Path,
        state: RunState,
        learned: Mapping[str, Tensor],
        optimiser: Mapping[str, Tensor],
    ) -> None:
        if self.world.first:
            self.root.mkdir(parents=True, exist_ok=True)
            for left in self.root.glob(".checkpoint-*.tmp"):  # by runs that were killed
                shutil.rmtree(left)
            scratch.mkdir()
        self.world.barrier()
        _write_tensors(scratch / _shard_name(self.world.rank, self.world.size), optimiser)
        if self.world.first:
            _write_tensors(scratch / _LEARNED, learned)
            _write_state(scratch / _STATE, state)
        self.world.barrier()

    def _not_written(self, final: Path, error: Exception) -> str:
        good = self.latest()
        return f"{final} could not be written ({error}); " + (
            f"the last good checkpoint is {good}: make room and go on with --resume"
            if good
            else "there is no checkpoint yet: make room and start again"
        )

    def _complete(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        found = [(m, p) for p in self.root.iterdir() if (m := _NAME.fullmatch(p.name))]
        ordered = [p for _, p in sorted(found, key=lambda item: int(item[0][1]))]
        return [path for path in ordered if path not in self._damaged]


def _write_state(path: Path, state: RunState) -> None:
    body = {"step": state.step, "identity": state.identity, "statistics": state.statistics}
    text = {
        "format_version": CHECKPOINT_VERSION,
        _CHECKSUM: zlib.crc32(_canonical(body)),
        "state": body,
    }
    write_json(path, text, indent=1)


def _read_state(folder: Path) -> RunState:
    path = folder / _STATE
    text = read_json(path, _DamagedError)
    version, checksum, body = text.get("format_version"), text.get(_CHECKSUM), text.get("state")
    if type(version) is int and version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {version}, this reads {CHECKPOINT_VERSION}; "
            "finish that run with the release that began it"
        )
    if not isinstance(body, dict) or checksum != zlib.crc32(_canonical(body)):
        raise _DamagedError(f"{path.name} is not what was written")
    return RunState(body["step"], body["identity"], body["statistics"])


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _check_identity(path: Path, found: dict[str, Any], expected: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(expected))
    for name in sorted(wanted.keys() | found.keys()):
        old, new = found.get(name), wanted.get(name)
        if old != new:
            raise CheckpointError(
                f"{path} belongs to another run: {name} was {old!r} and is now {new!r}; "
                "resume with the old value or choose another run folder"
            )


def _shards(folder: Path) -> list[Path]:
    sizes = [int(match[1]) for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))]
    size = max(sizes, default=1)
    return [folder / _shard_name(rank, size) for rank in range(size)]


def _shard_name(rank: int, size: int) -> str:
    return f"optimiser-{rank:05d}-of-{size:05d}.safetensors"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), path, {_CHECKSUM: str(_checksum(tensors))})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get(_CHECKSUM)
    except (OSError, SafetensorError) as error:
        raise _DamagedError(f"{path.name} cannot be read: {error}") from error
    if checksum != str(_checksum(tensors)):
        raise _DamagedError(f"{path.name} is not what was written")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total = zlib.crc32(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total
