"""Command-line options of the locust file, and the checked settings they become."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.gate import Slo
from loadtests.mask_mix import MaskMix
from loadtests.prompts import LoadPrompt, load_prompts, synthetic_prompts

SALTS = ("prompt", "cache_salt", "both", "none")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What a run sends and when it has had enough; the options' help says what each means."""

    prompts: list[LoadPrompt]
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


def add_options(parser: ArgumentParser) -> None:
    """Add this package's options to locust's own."""
    add: Any = parser.add_argument  # locust's own parser takes more than argparse's
    add("--model", dest="base_model", help="Base model; asked from /v1/models when not given")
    add("--mask-mix", help="Masks to ask for: one:A, uniform:A,B, zipf:A,B or zipf@1.2:A,B")
    add("--api-key", env_var="LOADTEST_API_KEY", is_secret=True, help="Sent as bearer token")
    add("--prompts", help="Prompts: a line each, or *.jsonl with a prompt field")
    add("--prompt-words", type=int, default=100, help="Words of the synthetic prompts")
    add("--max-tokens", type=int, default=128, help="Tokens that every request generates")
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
    add("--rate", type=float, help="Open loop: Poisson arrivals per second, with one user")
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
    for name in ("requests", "seconds", "rate", "request_timeout"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be positive")
    if not 0.0 <= options.max_failure_share <= 1.0:
        raise ValueError(f"--max-failure-share {options.max_failure_share}: not within 0 and 1")
    if options.rate is not None and (options.num_users or 1) != 1:
        raise ValueError(
            f"--rate is an open loop that one user dispatches: use -u 1, not -u {options.num_users}"
        )
    if options.rate is not None and options.requests is None and options.seconds is None:
        raise ValueError("--rate needs an end: --requests or --seconds")
    return LoadSettings(
        prompts=_prompts(options),
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


def _prompts(options: Namespace) -> list[LoadPrompt]:
    if options.prompts:
        return load_prompts(Path(options.prompts))
    return synthetic_prompts(options.prompt_words, seed=options.seed)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} {value}: must be at least {least}")
