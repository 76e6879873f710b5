"""The locust file: options, the life of a run, and the exit code.

    locust -f loadtests/locustfile.py CompletionUser --headless -H http://127.0.0.1:8000 \
        -u 8 -r 8 --warmup 8 --requests 64 --samples samples.jsonl --summary summary.json

Exit code 0: passed; 1: requests failed or an objective was missed; 2: it could not run.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from typing import Any, NoReturn

import gevent
from locust import events
from locust.runners import MasterRunner, WorkerRunner

from loadtests.options import LoadSettings, add_options, settings_from
from loadtests.run import ClientLoad, LoadRun, SampleLog
from loadtests.server_questions import find_base_model, find_vocabulary
from loadtests.users import ChatUser, CompletionUser, fire_gaps
from loadtests.workers import MasterSide, WorkerSide

__all__ = ["ChatUser", "CompletionUser"]

_WATCH_S = 0.02


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _on_parser(parser: ArgumentParser, **_: Any) -> None:
    add_options(parser)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Any, runner: Any, **_: Any) -> None:
    options = environment.parsed_options
    if isinstance(runner, WorkerRunner):
        environment.load_worker = WorkerSide(runner)
        if not options.processes:
            return  # the options come from the master, with the start
    if isinstance(runner, MasterRunner) and options.num_users is None:
        # One dispatcher in each worker.
        options.num_users = options.spawn_rate = options.expect_workers
    settings = _settings(environment)
    if isinstance(runner, MasterRunner | WorkerRunner) and settings.open_loop is None:
        _refuse(
            "a closed loop is one process, since its users take requests from one budget: give "
            "--rate or --trace, or no --processes, --master and --worker"
        )
    environment.load_settings = settings


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _on_test_start(environment: Any, **_: Any) -> None:
    worker: WorkerSide | None = getattr(environment, "load_worker", None)
    settings = environment.load_settings if worker is None else _settings(environment)
    try:
        if not environment.host:
            raise ValueError("no server: give its address with -H")
        if worker is not None:
            share = worker.share(environment.parsed_options.expect_workers)
            environment.load_run = LoadRun(
                settings, *_asked(environment, settings), worker.keep, share
            )
            environment.load_start = worker.start
            gevent.spawn(_tell_when_finished, environment, worker)
            return
        environment.load_log = log = SampleLog(settings)
        if isinstance(environment.runner, MasterRunner):
            workers = environment.parsed_options.expect_workers
            environment.load_master = MasterSide(environment.runner, workers, log)
            gevent.spawn(environment.load_master.watch)
            return
        environment.load_run = LoadRun(settings, *_asked(environment, settings), log.keep)
    except (ValueError, OSError) as error:
        # SystemExit: the runner logs and swallows anything less at this point.
        _refuse(str(error))
    environment.load_start = time.perf_counter
    gevent.spawn(_quit_when_finished, environment)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _on_quitting(environment: Any, **_: Any) -> None:
    if getattr(environment, "load_worker", None) is not None:
        return
    log: SampleLog | None = getattr(environment, "load_log", None)
    master: MasterSide | None = getattr(environment, "load_master", None)
    run: LoadRun | None = getattr(environment, "load_run", None)
    clients: list[ClientLoad] = []
    if master is not None:
        clients = master.clients
    elif run is not None and log is not None:
        fire_gaps(environment, log.samples)
        clients = [run.client_load()]
    lost = master.lost if master is not None else []
    if log is None or lost:
        for reason in lost:
            _print_line(f"error: {reason}")
        environment.process_exit_code = 2
        return
    summary, reasons = log.finish(clients)
    cpu = "unknown" if summary.client_cpu_share is None else f"{summary.client_cpu_share:.0%}"
    _print_line(
        f"{summary.requests} requests, {summary.failed} failed, {summary.output_tokens} tokens in "
        f"{summary.wall_s:.2f} s: {summary.tokens_per_s:.1f} tokens/s; client CPU {cpu} of a core"
    )
    for reason in reasons:
        _print_line(f"failed: {reason}")
    environment.process_exit_code = 1 if reasons else 0


def _settings(environment: Any) -> LoadSettings:
    try:
        return settings_from(environment.parsed_options)
    except (ValueError, OSError) as error:
        _refuse(str(error))


def _asked(environment: Any, settings: LoadSettings) -> tuple[Any, str]:
    """What requests say and the model they name, for which the server may have to be asked."""
    host = environment.host
    model = settings.model or find_base_model(host, settings.api_key)
    vocabulary = None
    if settings.exact_lengths:
        endpoint = environment.user_classes[0].endpoint
        vocabulary = find_vocabulary(host, model, endpoint, settings.api_key)
    return settings.source(vocabulary), model


def _print_line(text: str) -> None:
    """A line on stderr, where locust prints its own."""
    sys.stderr.write(text + "\n")


def _quit_when_finished(environment: Any) -> None:
    while not environment.load_run.finished:
        gevent.sleep(_WATCH_S)
    environment.runner.quit()


def _tell_when_finished(environment: Any, worker: WorkerSide) -> None:
    while not environment.load_run.finished:
        gevent.sleep(_WATCH_S)
    worker.end(environment.load_run)


def _refuse(reason: str) -> NoReturn:
    _print_line(f"error: {reason}")
    raise SystemExit(2)
