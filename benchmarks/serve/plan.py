"""How servers are compared: the loads, their prompts, and when a block has had enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from engines.typed_options import explain
from loadtests.blocks import LoadPoint
from loadtests.client import Load


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to compare.

    Attributes:
        concurrencies: users of the closed loop, one after another.
        rates: instead: arrivals per second of an open loop, one after another.
        requests: measured requests of a block; None is two per user, at least four, and in an open
            loop 64.
        seconds: length of a block instead, when given.
        repeats: blocks of every arm at every load.
        max_tokens: tokens that every request generates.
        prompt_words: length of the synthetic prompts.
        prompts: file of prompts instead of them.
        mask_prompts: `MASK=FILE`, prompts of requests that ask for a mask.
        lengths: instead: random prompts of exactly so many tokens, and tokens to generate, one
            pair after another.
        preset: what the lengths were taken from, `maskllm` or `maskllm/N`; shown with the rows.
        trace: an open loop by a trace's times and lengths instead.
        trace_speed: how many times as fast its time runs.
        trace_lengths: factor on its prompts and answers.
        workers: processes that drive an open loop between them.
        endpoint: `completions` or `chat`.
        mask_mix: masks that requests of arms ask for that have masks and name none; None is the
            default mask.
        threads: OpenMP threads of each server; None leaves it to the machine.
        request_timeout_s: a stream that is silent for longer has failed.
        force: measure although other processes are busy or the load generator distorts; the
            report says by how much.
    """

    concurrencies: tuple[int, ...] = (1, 8)
    rates: tuple[float, ...] = ()
    requests: int | None = None
    seconds: float | None = None
    repeats: int = 3
    max_tokens: int = 128
    prompt_words: int = 100
    prompts: Path | None = None
    mask_prompts: tuple[str, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()
    preset: str | None = None
    trace: Path | None = None
    trace_speed: float = 1.0
    trace_lengths: float = 1.0
    workers: int = 1
    endpoint: Literal["completions", "chat"] = "completions"
    mask_mix: str | None = None
    threads: int | None = None
    request_timeout_s: float = 120.0
    force: bool = False

    def check(self) -> None:
        """Refuse numbers that make no comparison.

        Raises:
            ValueError: naming the number and its limit.
        """
        if not self.rates and (not self.concurrencies or min(self.concurrencies) < 1):
            raise ValueError(f"concurrencies {self.concurrencies}: each must be at least 1")
        if self.rates and not min(self.rates) > 0:
            raise ValueError(f"rates {self.rates}: each must be positive")
        for name in ("concurrencies", "rates"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} {values}: name each once")
        for name in ("repeats", "max_tokens", "prompt_words", "requests", "threads", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        for name in ("seconds", "request_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value}: must be positive")
        if self.seconds is not None and self.requests is not None:
            raise ValueError("a block ends after requests or seconds: give one of them")
        if self.workers > 1 and not self.open_loop:
            raise ValueError(f"workers = {self.workers}: a closed loop is one process")
        given = [name for name in ("prompts", "lengths", "trace") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say what prompts are: give one")
        if self.trace and self.rates:
            raise ValueError("a trace and rates both say when requests are due: give one")

    @property
    def open_loop(self) -> bool:
        """Whether requests are sent when they are due, whatever is still running."""
        return bool(self.rates) or self.trace is not None

    def points(self) -> Iterator[LoadPoint]:
        """Every load that is measured, in order."""
        for lengths in self._lengths():
            if self.trace is not None:
                yield LoadPoint(lengths)
            for rate in self.rates:
                yield LoadPoint(lengths, rate=rate)
            for users in () if self.open_loop else self.concurrencies:
                yield LoadPoint(lengths, concurrency=users)

    def _lengths(self) -> list[str]:
        if self.lengths:
            return [f"{prompt}/{output}" for prompt, output in self.lengths]
        if self.trace is not None:
            return [self.trace.name]
        if self.prompts is not None:
            return [f"{self.prompts.name}/{self.max_tokens}"]
        return [f"{self.prompt_words} words/{self.max_tokens}"]

    @property
    def streams(self) -> int:
        """Streams at a time for which the load generator is calibrated."""
        return 8 if self.open_loop else max(self.concurrencies)

    def load(
        self, url: str, point: LoadPoint, repeat: int, mask_mix: str | None, model: str | None
    ) -> Load:
        """The load of one block; all arms get the same prompts and salts in a repeat."""
        users = point.concurrency or 1
        requests = self.requests
        if requests is None and self.seconds is None and self.trace is None:
            requests = 64 if point.open_loop else max(4, 2 * users)
        pairs = {f"{prompt}/{output}": (prompt, output) for prompt, output in self.lengths}
        prompt_tokens, max_tokens = pairs.get(point.lengths, (None, self.max_tokens))
        return Load(
            host=url,
            concurrency=users,
            rate=point.rate,
            requests=requests,
            seconds=self.seconds,
            warmup=users,
            max_tokens=max_tokens,
            prompt_words=self.prompt_words,
            prompt_tokens=prompt_tokens,
            prompts=self.prompts.resolve() if self.prompts else None,
            mask_prompts=self._mask_prompts(),
            trace=self.trace.resolve() if self.trace else None,
            trace_speed=self.trace_speed,
            trace_lengths=self.trace_lengths,
            workers=self.workers,
            endpoint=self.endpoint,
            model=model,
            mask_mix=mask_mix,
            seed=repeat,
            request_timeout_s=self.request_timeout_s,
        )

    def _mask_prompts(self) -> tuple[str, ...]:
        """With the files' absolute paths: locust runs in another folder."""
        pairs = (pair.partition("=") for pair in self.mask_prompts)
        return tuple(f"{mask}={Path(path).resolve()}" for mask, _, path in pairs)


SETTINGS = (
    *("seconds", "max_tokens", "prompt_words", "mask_prompts", "mask_mix", "trace_speed"),
    *("trace_lengths", "workers", "endpoint", "threads", "request_timeout_s"),
)
"""Fields of a plan that are given as NAME=VALUE: those that most comparisons leave alone."""


def read_plan(given: Mapping[str, Any], settings: Sequence[str]) -> LoadPlan:
    """A plan from values, and from further ones as text.

    Args:
        given: field -> value.
        settings: `NAME=VALUE` of a field in `SETTINGS`; `mask_prompts` may be repeated.

    Raises:
        ValueError: a setting is unknown or malformed; the message names it.
    """
    found: dict[str, Any] = {}
    for pair in settings:
        name, equals, value = pair.partition("=")
        if not equals or name not in SETTINGS:
            raise ValueError(f"--set {pair!r}: give NAME=VALUE with one of {', '.join(SETTINGS)}")
        found[name] = (*found.get(name, ()), value) if name == "mask_prompts" else value
    try:
        return TypeAdapter(LoadPlan).validate_python({**given, **found})
    except ValidationError as error:
        raise ValueError(explain(error)) from error
