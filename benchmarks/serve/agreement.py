"""One server measured by guidellm and by `loadtests`, in turns: do two clients agree?

The server has one core and the clients another, so that neither takes CPU from the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.arm_process import ArmError
from benchmarks.common.machine import OtherCpu
from benchmarks.common.page import markdown_table, number, page
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.common.server_process import Server
from benchmarks.serve.arms import ComparisonError
from loadtests.blocks import turns
from loadtests.client import Load, run_load
from loadtests.verdict import failures

KEY = ("tool", "concurrency")
TOOLS = ("twofour", "guidellm")
FIGURES = ("tokens_per_s", "ttft_p50_ms", "tpot_p50_ms")

_TIMEOUT_S = 600.0
_TAIL = 2000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AgreementPlan:
    """What both clients ask for.

    Attributes:
        guidellm: its command.
        prompt_tokens, output_tokens: of every request, random prompts.
        requests: measured requests of a turn; as many as run at a time are not measured before.
        repeats: turns of either tool at a load.
    """

    guidellm: Path
    prompt_tokens: int = 128
    output_tokens: int = 64
    requests: int = 24
    repeats: int = 3


def measure_agreement(
    engine: Path, plan: AgreementPlan, concurrency: int, folder: Path, say: Say
) -> list[ResultRow]:
    """A row of either tool at one load: medians over its turns.

    Raises:
        ValueError: fewer than two cores.
        ArmError: the server or guidellm failed.
        ComparisonError: a request failed.
        LoadError: locust could not run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ValueError("one core cannot be shared between server and client: at least two needed")
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    with _on_cores({cores[0]}):
        server = Server("engine", engine, folder / f"server-{concurrency}.log", threads=1)
    with server, OtherCpu() as other, _on_cores(set(cores[1:])):
        server.wait_until_healthy()
        for repeat, tool in turns(TOOLS, plan.repeats):
            say(f"{tool}, {concurrency} at a time, repeat {repeat + 1} of {plan.repeats}")
            measure = _ours if tool == TOOLS[0] else _guidellm
            found[tool].append(measure(server.url, engine, plan, concurrency, repeat, folder))
    return [
        {
            "tool": tool,
            "concurrency": concurrency,
            **{f: round(statistics.median(t[f] for t in turn), 3) for f in FIGURES},
            "repeats": plan.repeats,
            "requests": plan.requests * plan.repeats,
            "prompt_tokens": plan.prompt_tokens,
            "output_tokens": plan.output_tokens,
            "other_cpu_share": round(other.share, 4),
        }
        for tool, turn in found.items()
    ]


def client_agreement_page(result: ResultData) -> str:
    """The page of docs/results/agreement.json."""
    return page("Two load generators on one server", _ABOUT, result, agreement_table(result))


def agreement_table(result: ResultData) -> str:
    """Both tools at each load, and the one over the other."""
    rows = {(row["tool"], row["concurrency"]): row for row in result["rows"]}
    lines = []
    for level in sorted({row["concurrency"] for row in result["rows"]}):
        pair = [rows.get((tool, level)) for tool in TOOLS]
        for tool, row in zip(TOOLS, pair, strict=True):
            if row is not None:
                lines.append([tool, level, *(number(row[figure]) for figure in FIGURES)])
        if pair[0] is not None and pair[1] is not None:
            ratios = [f"{pair[1][f] / pair[0][f]:.3f}" for f in FIGURES]
            lines.append(["guidellm / twofour", level, *ratios])
    return markdown_table(["tool", "users", "tokens/s", "TTFT p50, ms", "TPOT p50, ms"], lines)


_ABOUT = """
The same server, on one core with one thread, measured in turns by guidellm and by the load tests of
this project from another core. Closed loop, random prompts of 128 tokens, 64 generated ones unless
the command says otherwise. guidellm's inter-token latency is what is called TPOT here: its own TPOT
has the first token in it.
"""


def _ours(
    url: str, engine: Path, plan: AgreementPlan, concurrency: int, repeat: int, folder: Path
) -> dict[str, float]:
    load = Load(
        host=url,
        concurrency=concurrency,
        warmup=concurrency,
        requests=plan.requests,
        prompt_tokens=plan.prompt_tokens,
        max_tokens=plan.output_tokens,
        seed=repeat,
    )
    summary = run_load(load, folder, f"twofour-c{concurrency}-r{repeat}").summary
    if found := failures(summary):
        raise ComparisonError(found[0])
    return {
        "tokens_per_s": summary.tokens_per_s,
        "ttft_p50_ms": summary.ttft_ms["p50"],
        "tpot_p50_ms": summary.tpot_ms["p50"],
    }


def _guidellm(
    url: str, engine: Path, plan: AgreementPlan, concurrency: int, repeat: int, folder: Path
) -> dict[str, float]:
    report = folder.resolve() / f"guidellm-c{concurrency}-r{repeat}.json"
    profile = {
        "kind": "concurrent",
        "streams": concurrency,
        "warmup": {"mode": "requests", "value": concurrency},
    }
    data = f"prompt_tokens={plan.prompt_tokens},output_tokens={plan.output_tokens}"
    command = [
        *(str(plan.guidellm.absolute()), "run", "--disable-console-interactive"),
        *("--backend", f"kind=openai_http,target={url},request_format=/v1/completions"),
        *("--profile", json.dumps(profile)),
        *("--data", f"kind=synthetic_text,{data}"),
        *("--tokenizer", f"kind=huggingface_auto,model={engine.resolve()}"),
        *("--constraint", f"kind=max_requests,count={plan.requests + concurrency}"),
        *("--seed", f"kind=static,value={1000 + repeat}"),
        *("--output", f"kind=json,path={report}"),
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode or not report.is_file():
        told = (done.stdout + done.stderr)[-_TAIL:]
        raise ArmError(f"guidellm ended with code {done.returncode}:\n{told}")
    return guidellm_figures(json.loads(report.read_text(encoding="utf-8")))


def guidellm_figures(report: dict[str, Any]) -> dict[str, float]:
    """Our names for what a report of guidellm 0.8 holds.

    Raises:
        ComparisonError: a request failed, or the report has another form.
    """
    try:
        metrics = report["benchmarks"][0]["metrics"]
        failed = metrics["request_totals"]["errored"] + metrics["request_totals"]["incomplete"]
        figures = {
            "tokens_per_s": metrics["output_tokens_per_second"]["successful"]["mean"],
            "ttft_p50_ms": metrics["time_to_first_token_ms"]["successful"]["median"],
            "tpot_p50_ms": metrics["inter_token_latency_ms"]["successful"]["median"],
        }
    except (KeyError, IndexError, TypeError) as error:
        raise ComparisonError(f"guidellm's report has another form: no {error}") from error
    if failed:
        raise ComparisonError(f"{failed} of guidellm's requests failed")
    return {name: float(value) for name, value in figures.items()}


@contextlib.contextmanager
def _on_cores(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
