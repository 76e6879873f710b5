"""The locust file: options, the life of a run, and the exit code.

    locust -f loadtests/locustfile.py CompletionUser --headless -H http://127.0.0.1:8000 \
        -u 8 -r 8 --warmup 8 --requests 64 --samples samples.jsonl --summary summary.json

Exit code 0: passed; 1: requests failed or an objective was missed; 2: it could not run.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any, NoReturn

import gevent
from locust import events
from locust.runners import LocalRunner

from loadtests.options import add_options, settings_from
from loadtests.run import LoadRun, find_base_model
from loadtests.users import ChatUser, CompletionUser, fire_gaps

__all__ = ["ChatUser", "CompletionUser"]

_WATCH_S = 0.02


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _on_parser(parser: ArgumentParser, **_: Any) -> None:
    add_options(parser)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Any, runner: Any, **_: Any) -> None:
    if not isinstance(runner, LocalRunner):
        _refuse(
            "one run is one process (its samples and its request numbers are): "
            "start several runs with unlike --seed instead of --processes, --master or --worker"
        )
    try:
        environment.load_settings = settings_from(environment.parsed_options)
    except (ValueError, OSError) as error:
        _refuse(str(error))


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _on_test_start(environment: Any, **_: Any) -> None:
    settings = environment.load_settings
    try:
        if not environment.host:
            raise ValueError("no server: give its address with -H")
        model = settings.model or find_base_model(environment.host, settings.api_key)
        environment.load_run = LoadRun(settings, model)
    except (ValueError, OSError) as error:
        # SystemExit: the runner logs and swallows anything less at this point.
        _refuse(str(error))
    gevent.spawn(_quit_when_finished, environment)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _on_quitting(environment: Any, **_: Any) -> None:
    run: LoadRun | None = getattr(environment, "load_run", None)
    if run is None:
        environment.process_exit_code = 2
        return
    fire_gaps(environment, run)
    summary, reasons = run.finish()
    cpu = "unknown" if summary.client_cpu_share is None else f"{summary.client_cpu_share:.0%}"
    _print_line(
        f"{summary.requests} requests, {summary.failed} failed, {summary.output_tokens} tokens in "
        f"{summary.wall_s:.2f} s: {summary.tokens_per_s:.1f} tokens/s; client CPU {cpu} of a core"
    )
    for reason in reasons:
        _print_line(f"failed: {reason}")
    environment.process_exit_code = 1 if reasons else 0


def _print_line(text: str) -> None:
    """A line on stderr, where locust prints its own."""
    sys.stderr.write(text + "\n")


def _quit_when_finished(environment: Any) -> None:
    while not environment.load_run.budget.finished:
        gevent.sleep(_WATCH_S)
    environment.runner.quit()


def _refuse(reason: str) -> NoReturn:
    _print_line(f"error: {reason}")
    raise SystemExit(2)
