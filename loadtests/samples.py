"""Raw samples: one JSON line per request, kept so that any statistic can be taken again."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, get_type_hints

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One request. Clock times are seconds of the machine's monotonic clock.

    Attributes:
        request_id: what the request sent as `X-Request-Id`.
        index: position in the run; prompt, salt and mask follow from it and the seed.
        warmup: not part of any statistic.
        endpoint: path of the URL.
        model: the request's `model`, mask included.
        mask: the mask it asked for, None for the server's default.
        prompt_id: which prompt.
        scheduled_at: clock when it was due (open loop) or its user was free (closed loop).
        started_at: clock when it was sent.
        started_unix: the same by the wall clock, seconds since 1970.
        ttft_s: send to first text; None when none came.
        e2e_s: send to the last chunk of the choice; None when the stream broke before.
        token_times_s: send to each chunk with text, seconds.
        prompt_tokens, completion_tokens, cached_tokens: the server's count, from `usage`.
        requested_tokens: how many it was told to generate.
        status: HTTP status; 0 when there was no response.
        finish_reason: of the choice.
        error: why it failed, None when it succeeded.
    """

    request_id: str
    index: int
    warmup: bool
    endpoint: str
    model: str
    mask: str | None
    prompt_id: str
    scheduled_at: float
    started_at: float
    started_unix: float
    ttft_s: float | None
    e2e_s: float | None
    requested_tokens: int
    token_times_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    status: int = 0
    finish_reason: str | None = None
    error: str | None = None
    schema: int = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether the request did what it was told to."""
        return self.error is None

    @property
    def tpot_s(self) -> float | None:
        """(E2E - TTFT) / (tokens - 1): seconds per output token after the first."""
        if self.e2e_s is None or self.ttft_s is None or (self.completion_tokens or 0) < 2:
            return None
        return (self.e2e_s - self.ttft_s) / ((self.completion_tokens or 0) - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: seconds between consecutive chunks with text."""
        times = self.token_times_s
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    def to_json(self) -> str:
        """One line of a samples file."""
        row = dataclasses.asdict(self)
        row["token_times_s"] = [round(t, 6) for t in self.token_times_s]
        return json.dumps(row)


class SampleWriter:
    """Appends samples to a new file, a line each, flushed so that a killed run keeps its own.

    Raises:
        FileExistsError: the file is there already.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("x", encoding="utf-8")

    def write(self, sample: RequestSample) -> None:
        """Append one sample."""
        self._file.write(sample.to_json() + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_samples(path: Path) -> list[RequestSample]:
    """All samples of a file.

    Raises:
        ValueError: a line that is not a sample of this schema.
    """
    with path.open(encoding="utf-8") as lines:
        return [sample_of(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def judge(sample: RequestSample, prompt_tokens: int | None) -> str | None:
    """What is wrong with a stream that was whole: a length, or that it never said anything.

    Args:
        sample: the request.
        prompt_tokens: how long its prompt must be, None where any length will do.
    """
    if prompt_tokens is not None and sample.prompt_tokens != prompt_tokens:
        return f"the prompt has {sample.prompt_tokens} tokens, not {prompt_tokens}"
    if sample.completion_tokens != sample.requested_tokens:
        return (
            f"generated {sample.completion_tokens} tokens, not {sample.requested_tokens} "
            f"(finish reason {sample.finish_reason})"
        )
    if sample.e2e_s is None:
        return "the stream held no choice"
    return None


_FIELDS = get_type_hints(RequestSample)


def sample_of(line: str, where: str) -> RequestSample:
    """The sample of one line.

    Raises:
        ValueError: it is none of this schema; the message begins with `where`.
    """
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        raise ValueError(f"{where}: not a sample of schema {SCHEMA}")
    if set(row) != set(_FIELDS):
        odd = sorted(set(row) ^ set(_FIELDS))
        raise ValueError(f"{where}: missing or unknown fields {odd}")
    return RequestSample(**row)
