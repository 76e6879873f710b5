"""`twofour bench engine`: the CPU engine end to end, sparse and dense in turns."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from benchmarks.engine import Plan

_Option = typer.Option


def engine(
    dense: Annotated[Path | None, _Option(help="Engine directory without masks.")] = None,
    sparse: Annotated[Path | None, _Option(help="Engine directory of the same model.")] = None,
    model: Annotated[
        str | None,
        _Option(help="The dense model: vLLM's, and without --dense and --sparse also built from."),
    ] = None,
    mask: Annotated[
        list[str] | None, _Option(help="NAME=FILE or FILE, as `twofour build` takes them.")
    ] = None,
    arms: Annotated[str, _Option(help="Which of the engine's own arms.")] = "sparse,dense",
    lengths: Annotated[
        str, _Option(help="Prompt/output tokens, separated by commas.")
    ] = "128/128,128/512,1024/128",
    concurrency: Annotated[str, _Option(help="Requests at a time.")] = "1,4,8,16,32",
    repeats: Annotated[int, _Option(help="Waves of every arm in every cell.", min=1)] = 3,
    threads: Annotated[int, _Option(help="OpenMP threads of every arm.")] = 0,
    kv_mib: Annotated[
        int, _Option(help="Memory for keys and values of our arms and of vLLM, MiB.", min=1)
    ] = 256,
    vllm_python: Annotated[
        Path | None, _Option(help="Python of an environment with vLLM: arm vllm-dense.")
    ] = None,
    zentorch_python: Annotated[
        Path | None, _Option(help="The same with zentorch besides: arm vllm-zentorch.")
    ] = None,
    vllm_binding: Annotated[
        str, _Option(help="VLLM_CPU_OMP_THREADS_BIND: nobind, auto, all.")
    ] = "nobind",
    llama_batched_bench: Annotated[
        Path | None, _Option(help="llama.cpp's program of that name.")
    ] = None,
    gguf: Annotated[
        list[str] | None, _Option(help="TYPE=FILE for llama.cpp, such as bf16=model.gguf.")
    ] = None,
    keep: Annotated[
        bool, _Option(help="Keep the rows of the result file that are not measured again.")
    ] = False,
    result: Annotated[str, _Option(help="Name of the result file.")] = "bench-engine",
    split: Annotated[
        bool, _Option(help="Instead: where the time of a decode step goes (engine-split.json).")
    ] = False,
    json_: Annotated[
        bool, _Option("--json", help="Print the result as JSON, as the last line.")
    ] = False,
) -> None:
    """Measure the arms of the CPU engine in turns, and write docs/results/bench-engine.json."""
    from benchmarks import engine_arms
    from benchmarks.engine import Plan
    from maskgen.models import resolve_model
    from twofour.commands.bench_serve import _engines

    plan = Plan(
        lengths=tuple(_pair(text) for text in lengths.split(",")),
        concurrencies=tuple(int(text) for text in concurrency.split(",")),
        repeats=repeats,
        threads=threads or len(os.sched_getaffinity(0)),
        kv_mib=kv_mib,
    )
    peers: dict[str, list[str]] = {}
    for arm, python in (("vllm-dense", vllm_python), ("vllm-zentorch", zentorch_python)):
        if python is not None:
            if model is None:
                raise ValueError(f"{arm} needs --model: vLLM runs the dense model itself")
            peers[arm] = engine_arms.vllm_command(python, resolve_model(model), plan, vllm_binding)
    for spec in gguf or []:
        name, found, file = spec.partition("=")
        if llama_batched_bench is None or not found or not Path(file).is_file():
            raise ValueError(f"--gguf {spec!r}: give TYPE=FILE, and --llama-batched-bench")
        peers[f"llama.cpp-{name}"] = engine_arms.llama_command(
            llama_batched_bench, Path(file), plan
        )
    given = dense is not None or sparse is not None
    with _engines(dense, sparse, None if given else model, mask or []) as (dense_dir, sparse_dir):
        if split:
            path = _split(dense_dir, sparse_dir, plan)
        else:
            own = {"sparse": sparse_dir, "dense": dense_dir}
            if unknown := [arm for arm in arms.split(",") if arm not in own]:
                raise ValueError(f"--arms: {unknown[0]!r} is none of {', '.join(own)}")
            ours = {arm: engine_arms.engine_command(own[arm], plan) for arm in arms.split(",")}
            path = _measure(ours | peers, plan, result, keep)
    if json_:
        typer.echo(json.dumps(json.loads(path.read_text(encoding="utf-8"))))


def _measure(arms: dict[str, list[str]], plan: Plan, result: str, keep: bool) -> Path:
    """Measure, writing the result file after every cell."""
    from benchmarks import engine as bench
    from benchmarks.result_file import RESULTS, write_result

    path = RESULTS / f"{result}.json"
    old: dict[str, Any] = {"rows": [], "command": ""}
    if keep and path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
    commands = [*filter(None, old["command"].split("; ")), _command()]
    rows = []
    for row in bench.measure(arms, plan, lambda line: typer.echo(line, err=True)):
        typer.echo(
            f"  {row.arm:15} {row.tokens_per_s:8.1f} tokens/s  prompt"
            f" {row.prompt_tokens_per_s:8.1f}/s  decode {row.decode_tokens_per_s:8.1f}/s"
            f"  first {row.ttft_ms:7.1f} ms  next {row.tpot_ms:6.2f} ms  {row.rss_mib} MiB"
            f"  sparse / this {row.sparse_ratio}",
            err=True,
        )
        rows.append(row)
        if len(rows) % len(arms) == 0:
            every = bench.merged(old["rows"], bench.as_rows(rows))
            share = max(row["other_cpu_share"] for row in every)
            command = "; ".join(dict.fromkeys(commands))
            write_result(result, command, every, other_cpu_share=share)
    return path


def _split(dense: Path, sparse: Path, plan: Plan) -> Path:
    from benchmarks.engine_split import split_of
    from benchmarks.machine import OtherCpu
    from benchmarks.result_file import write_result

    rows = []
    with OtherCpu() as other:
        for arm, directory in (("sparse", sparse), ("dense", dense)):
            for context in sorted({prompt for prompt, _ in plan.lengths}):
                found = split_of(directory, threads=plan.threads, context=context)
                rows.append({"arm": arm, **found})
                figures = "  ".join(f"{k} {v:.3g}" for k, v in found.items())
                typer.echo(f"{arm}: {figures}", err=True)
    return write_result("engine-split", _command(), rows, other_cpu_share=other.share)


def _command() -> str:
    return shlex.join(["twofour", *sys.argv[1:]])


def _pair(text: str) -> tuple[int, int]:
    prompt, found, output = text.partition("/")
    if not (found and prompt.isdigit() and output.isdigit()):
        raise ValueError(f"--lengths {text!r}: expected PROMPT/OUTPUT, such as 128/128")
    return int(prompt), int(output)
