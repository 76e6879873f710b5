"""Command-line options of the locust file, and the checked settings they become."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.mask_mix import MaskMix
from loadtests.objectives import Slo
from loadtests.open_loop import OpenLoop
from loadtests.prompt_source import PromptPool, PromptSource, RandomPrompts, TracePrompts
from loadtests.prompts import LoadPrompt, load_prompts, synthetic_prompts
from loadtests.random_prompts import Vocabulary
from loadtests.sharegpt import read_sharegpt
from loadtests.trace import TraceRequest, read_trace

SALTS = ("prompt", "cache_salt", "both", "none")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What a run sends and when it has had enough; the options' help says what each means."""

    prompts: list[LoadPrompt]
    mask_prompts: dict[str, list[LoadPrompt]]
    prompt_tokens: int | None
    trace: list[TraceRequest]
    model: str | None
    mask_mix: MaskMix | None
    api_key: str | None
    max_tokens: int
    temperature: float
    salt: str
    seed: int
    requests: int | None
    seconds: float | None
    warmup: int
    rate: float | None
    timeout_s: float
    samples: Path | None
    summary: Path | None
    max_failure_share: float
    slos: list[Slo]

    @property
    def open_loop(self) -> OpenLoop | None:
        """The open loop, None when it is a closed one."""
        if self.rate is None and not self.trace:
            return None
        return OpenLoop(self.rate, self.trace, self.seed, self.warmup, self.requests, self.seconds)

    def source(self, vocabulary: Vocabulary | None) -> PromptSource:
        """What requests say.

        Args:
            vocabulary: words of the server; needed where prompts have an exact length.
        """
        if vocabulary is not None and self.trace:
            return TracePrompts(vocabulary, self.trace, self.warmup, self.seed)
        if vocabulary is not None and self.prompt_tokens is not None:
            return RandomPrompts(vocabulary, self.prompt_tokens, self.seed)
        seed = self.seed if self.salt in ("prompt", "both") else None
        return PromptPool(self.prompts, self.mask_prompts, seed)

    @property
    def exact_lengths(self) -> bool:
        """Whether prompts have a length that only the server can count."""
        return self.prompt_tokens is not None or bool(self.trace)


def add_options(parser: ArgumentParser) -> None:
    """Add this package's options to locust's own."""
    add: Any = parser.add_argument  # locust's own parser takes more than argparse's
    add("--model", dest="base_model", help="Base model; asked from /v1/models when not given")
    add("--mask-mix", help="Masks to ask for: one:A, uniform:A,B, zipf:A,B or zipf@1.2:A,B")
    add("--api-key", env_var="LOADTEST_API_KEY", is_secret=True, help="Sent as bearer token")
    add("--prompts", help="Prompts: a line each, *.jsonl with a prompt field, *.json of ShareGPT")
    add(
        "--mask-prompts",
        action="append",
        default=[],
        help="MASK=FILE: prompts of the requests that ask for a mask; may be repeated",
    )
    add("--prompt-words", type=int, default=100, help="Words of the synthetic prompts")
    add("--prompt-tokens", type=int, help="Random prompts of exactly so many tokens instead")
    add("--trace", help="Open loop by a trace: Mooncake's *.jsonl or Azure's *.csv")
    add("--trace-speed", type=float, default=1.0, help="Its time runs so many times as fast")
    add("--trace-lengths", type=float, default=1.0, help="Factor on its prompts and answers")
    add("--max-tokens", type=int, default=128, help="Tokens to generate, where prompts say nothing")
    add("--temperature", type=float, default=0.0)
    add(
        "--salt",
        choices=SALTS,
        default="prompt",
        help="Keep prefix caches out: unlike first words, the cache_salt field, both or none",
    )
    add("--seed", type=int, default=0, help="Fixes prompts, salts, masks and arrivals")
    add("--requests", type=int, help="Measured requests of the whole run")
    add("--seconds", type=float, help="Start no request that long after the first measured one")
    add("--warmup", type=int, default=0, help="Requests before the measured ones")
    add("--rate", type=float, help="Open loop: Poisson arrivals per second")
    add("--request-timeout", type=float, default=600.0, help="Seconds without any byte")
    add("--samples", help="New JSONL file of raw samples")
    add("--summary", help="JSON file of the statistics")
    add("--max-failure-share", type=float, default=0.0, help="Above it the exit code is 1")
    add("--slo", action="append", default=[], help="Such as ttft_p99=500 (ms); may be repeated")


def settings_from(options: Namespace) -> LoadSettings:
    """Check the parsed options.

    Raises:
        ValueError: a value that cannot work, with its name and limit.
        OSError: an unreadable prompt file.
    """
    _at_least("--max-tokens", options.max_tokens, 1)
    _at_least("--warmup", options.warmup, 0)
    for name in ("requests", "seconds", "rate", "request_timeout", "prompt_tokens"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be positive")
    if not 0.0 <= options.max_failure_share <= 1.0:
        raise ValueError(f"--max-failure-share {options.max_failure_share}: not within 0 and 1")
    _check_loop(options)
    return LoadSettings(
        prompts=_prompts(options),
        mask_prompts=_mask_prompts(options.mask_prompts),
        prompt_tokens=options.prompt_tokens,
        trace=_trace(options),
        model=options.base_model,
        mask_mix=MaskMix.parse(options.mask_mix) if options.mask_mix else None,
        api_key=options.api_key,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        salt=options.salt,
        seed=options.seed,
        requests=options.requests,
        seconds=options.seconds,
        warmup=options.warmup,
        rate=options.rate,
        timeout_s=options.request_timeout,
        samples=Path(options.samples) if options.samples else None,
        summary=Path(options.summary) if options.summary else None,
        max_failure_share=options.max_failure_share,
        slos=[Slo.parse(text) for text in options.slo],
    )


def _check_loop(options: Namespace) -> None:
    """An open loop has one dispatcher in each process, an end, and one way to say when."""
    if options.trace and options.rate is not None:
        raise ValueError("--trace and --rate both say when requests are due: give one")
    if options.trace and (options.prompts or options.prompt_tokens or options.mask_prompts):
        raise ValueError("--trace has prompts of its own: give no other")
    if options.prompt_tokens and (options.prompts or options.mask_prompts):
        raise ValueError("--prompt-tokens makes random prompts: give no file of prompts besides")
    if options.rate is None and not options.trace:
        return
    if (options.num_users or options.expect_workers) != options.expect_workers:
        raise ValueError(
            "an open loop has one user in each process, which dispatches every request: leave -u "
            f"away instead of -u {options.num_users}"
        )
    if options.rate is not None and options.requests is None and options.seconds is None:
        raise ValueError("--rate needs an end: --requests or --seconds")


def _trace(options: Namespace) -> list[TraceRequest]:
    if not options.trace:
        return []
    speed, lengths = options.trace_speed, options.trace_lengths
    return read_trace(Path(options.trace), speed=speed, lengths=lengths)


def _prompts(options: Namespace) -> list[LoadPrompt]:
    if options.prompts:
        return _prompt_file(Path(options.prompts))
    return synthetic_prompts(options.prompt_words, seed=options.seed)


def _mask_prompts(pairs: list[str]) -> dict[str, list[LoadPrompt]]:
    found = {}
    for pair in pairs:
        mask, equals, path = pair.partition("=")
        if not mask or not equals or not path:
            raise ValueError(f"--mask-prompts {pair!r}: give MASK=FILE")
        found[mask] = _prompt_file(Path(path))
    return found


def _prompt_file(path: Path) -> list[LoadPrompt]:
    return read_sharegpt(path) if path.suffix == ".json" else load_prompts(path)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} {value}: must be at least {least}")
