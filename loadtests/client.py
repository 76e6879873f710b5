"""Runs one load with locust in a process of its own, and reads what it measured.

A process of its own because locust patches the standard library (gevent), and so that its CPU time
can be told from everything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtests.samples import RequestSample, read_samples
from loadtests.summary import Summary

_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_USERS = {"completions": "CompletionUser", "chat": "ChatUser"}


class LoadError(RuntimeError):
    """The load generator could not run, or did not leave its results."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load on one server; the options of `loadtests.locustfile` say what each means.

    Without `rate` and `trace` it is a closed loop of `concurrency` users, with one of them an open
    loop, which `workers` processes drive between them.
    """

    host: str
    concurrency: int = 1
    rate: float | None = None
    requests: int | None = None
    seconds: float | None = None
    warmup: int = 0
    max_tokens: int = 128
    prompt_words: int = 100
    prompts: Path | None = None
    mask_prompts: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    trace: Path | None = None
    trace_speed: float = 1.0
    trace_lengths: float = 1.0
    endpoint: str = "completions"
    model: str | None = None
    mask_mix: str | None = None
    salt: str = "prompt"
    seed: int = 0
    request_timeout_s: float = 600.0
    workers: int = 1

    def arguments(self, samples: Path, summary: Path) -> list[str]:
        """The command line that runs it."""
        closed = self.rate is None and self.trace is None
        named = {
            "-H": self.host,
            "-u": self.concurrency if closed else None,
            "-r": self.concurrency if closed else None,
            "--processes": self.workers if self.workers > 1 else None,
            "--prompt-tokens": self.prompt_tokens,
            "--trace": self.trace,
            "--trace-speed": self.trace_speed if self.trace else None,
            "--trace-lengths": self.trace_lengths if self.trace else None,
            "--rate": self.rate,
            "--requests": self.requests,
            "--seconds": self.seconds,
            "--warmup": self.warmup,
            "--max-tokens": self.max_tokens,
            "--prompt-words": self.prompt_words,
            "--prompts": self.prompts,
            "--model": self.model,
            "--mask-mix": self.mask_mix,
            "--salt": self.salt,
            "--seed": self.seed,
            "--request-timeout": self.request_timeout_s,
            "--samples": samples,
            "--summary": summary,
        }
        flags = [text for k, v in named.items() if v is not None for text in (k, str(v))]
        flags += [text for pair in self.mask_prompts for text in ("--mask-prompts", pair)]
        user = _USERS[self.endpoint]
        return ["-f", str(_LOCUSTFILE), user, "--headless", "--only-summary", *flags]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load measured, and the file of its raw samples."""

    summary: Summary
    samples: list[RequestSample]
    samples_path: Path


def run_load(load: Load, folder: Path, name: str, *, timeout_s: float = 1800.0) -> LoadResult:
    """Run `load`; its samples, summary and log go to `folder` under `name`.

    Failed requests do not raise: they are in the summary.

    Raises:
        LoadError: locust could not run it; the message has the end of its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    samples, summary = folder / f"{name}.jsonl", folder / f"{name}.summary.json"
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "locust", *load.arguments(samples, summary)]
    with log.open("wb") as output:
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"the load {name} did not end within {timeout_s:g} s") from error
    if code not in (0, 1) or not summary.is_file():
        raise LoadError(f"locust ended with code {code}:\n{_tail(log)}")
    return LoadResult(Summary.read(summary), read_samples(samples), samples)


def _environment() -> dict[str, str]:
    """This process's environment without locust settings, with this package importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LOCUST_", "LOADTEST_"))}
    root = str(Path(__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")]))
    return kept


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
