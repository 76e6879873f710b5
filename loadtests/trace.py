"""Traces of real traffic: when requests came, and how long prompts and answers were.

Two formats are read: Mooncake's JSON lines (timestamp in milliseconds, input_length, output_length
and maybe hash_ids, of which each stands for a block of 512 prompt tokens; arXiv 2407.00079), and
Azure's CSV (TIMESTAMP, ContextTokens, GeneratedTokens; the LLM inference traces of Azure's public
dataset). Neither has texts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 512
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        due_s: seconds after the trace's first request.
        prompt_tokens, output_tokens: lengths.
        blocks: names of the blocks that the prompt consists of; equal ones are equal text. Empty
            where the trace does not say.
        block_tokens: tokens of a block.
    """

    due_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = BLOCK_TOKENS


def read_trace(path: Path, *, speed: float = 1.0, lengths: float = 1.0) -> list[TraceRequest]:
    """The requests of a trace in order of time.

    Args:
        path: `*.jsonl` of Mooncake's form, or `*.csv` of Azure's.
        speed: time runs so many times as fast.
        lengths: factor on prompts and answers, for small models; nothing gets below one token.

    Raises:
        ValueError: a factor that is not positive, no request, or a line that is none.
    """
    for name, factor in (("speed", speed), ("lengths", lengths)):
        if not factor > 0:
            raise ValueError(f"trace {name} {factor}: must be positive")
    with path.open(encoding="utf-8-sig", newline="") as file:
        read = _azure if path.suffix == ".csv" else _mooncake
        found = sorted(read(file, path), key=lambda request: request.due_s)
    if not found:
        raise ValueError(f"{path} holds no request")
    start = found[0].due_s
    return [
        TraceRequest(
            due_s=(request.due_s - start) / speed,
            prompt_tokens=max(1, round(request.prompt_tokens * lengths)),
            output_tokens=max(1, round(request.output_tokens * lengths)),
            blocks=request.blocks,
            block_tokens=max(1, round(BLOCK_TOKENS * lengths)),
        )
        for request in found
    ]


def _mooncake(lines: Iterable[str], path: Path) -> Iterable[TraceRequest]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            yield TraceRequest(
                due_s=float(row["timestamp"]) / 1e3,
                prompt_tokens=_length(row["input_length"]),
                output_tokens=_length(row["output_length"]),
                blocks=tuple(int(block) for block in row.get("hash_ids", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number}: expected an object with timestamp, input_length and "
                f"output_length: {error!r}"
            ) from error


def _azure(lines: Iterable[str], path: Path) -> Iterable[TraceRequest]:
    reader = csv.DictReader(lines)
    if missing := set(_AZURE) - set(reader.fieldnames or ()):
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}: it is no Azure trace")
    for row in reader:
        try:
            yield TraceRequest(
                due_s=_unix_seconds(row["TIMESTAMP"]),
                prompt_tokens=_length(row["ContextTokens"]),
                output_tokens=_length(row["GeneratedTokens"]),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}") from error


def _unix_seconds(text: str) -> float:
    """Of an ISO time, in UTC unless it says otherwise: local time would jump twice a year."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _length(value: Any) -> int:
    length = int(value)
    if length < 0:
        raise ValueError(f"a length of {length} tokens")
    return max(length, 1)
