"""`twofour bench engine`: the CPU engine end to end, sparse and dense in turns."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twofour.commands.bench_mask_mix import mask_mix

if TYPE_CHECKING:
    from benchmarks.engine.mix_plan import MixPlan
    from benchmarks.engine.speed import Plan

_Option = typer.Option

LENGTHS = "128/128,128/512,1024/128"
CONCURRENCY = "1,4,8,16,32"


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
        str | None,
        _Option(help=f"Prompt/output tokens, separated by commas. [{LENGTHS}; --masks: 8/32]"),
    ] = None,
    concurrency: Annotated[
        str | None, _Option(help=f"Requests at a time. [{CONCURRENCY}; --masks: 16]")
    ] = None,
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
    vllm_dtype: Annotated[str, _Option(help="vLLM's number type: bfloat16, float32.")] = "bfloat16",
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
    masks: Annotated[
        bool,
        _Option(
            "--masks",
            help="Instead: many masks in one engine (mask-mix.json). The first"
            " --mask is the base, further ones are measured beside synthetic ones.",
        ),
    ] = False,
    mask_counts: Annotated[str, _Option(help="--masks: how many are resident.")] = "1,2,4,8,16",
    changed: Annotated[
        str, _Option(help="--masks: per cent of groups that synthetic masks change.")
    ] = "0.3,3,20,50",
    json_: Annotated[
        bool, _Option("--json", help="Print the result as JSON, as the last line.")
    ] = False,
) -> None:
    """Measure the arms of the CPU engine in turns, and write docs/results/bench-engine.json."""
    from benchmarks.engine import arms as engine_arms
    from benchmarks.engine.speed import Plan
    from maskgen.models import resolve_model
    from twofour.commands.bench_serve import _engines

    pairs = lengths or ("8/32" if masks else LENGTHS)
    plan = Plan(
        lengths=tuple(_pair(text) for text in pairs.split(",")),
        concurrencies=tuple(
            int(text) for text in (concurrency or ("16" if masks else CONCURRENCY)).split(",")
        ),
        repeats=repeats,
        threads=threads or len(os.sched_getaffinity(0)),
        kv_mib=kv_mib,
    )
    if masks:
        mixes = _mix_plan(plan, mask_counts, changed)
        _print(mask_mix(_command(), sparse, model, mask or [], mixes), json_)
        return
    peers: dict[str, list[str]] = {}
    for arm, python in (("vllm-dense", vllm_python), ("vllm-zentorch", zentorch_python)):
        if python is not None:
            if model is None:
                raise ValueError(f"{arm} needs --model: vLLM runs the dense model itself")
            peers[arm] = engine_arms.vllm_command(
                python, resolve_model(model), plan, dtype=vllm_dtype, binding=vllm_binding
            )
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
    _print(path, json_)


def _print(path: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(json.loads(path.read_text(encoding="utf-8"))))


def _mix_plan(plan: Plan, counts: str, changed: str) -> MixPlan:
    from benchmarks.engine.mix_plan import MixPlan

    if len(plan.lengths) > 1 or len(plan.concurrencies) > 1:
        raise ValueError("--masks takes one pair of --lengths and one --concurrency")
    try:
        shares = tuple(float(text) / 100 for text in changed.split(","))
        numbers = tuple(int(text) for text in counts.split(","))
    except ValueError as error:
        raise ValueError(f"--mask-counts {counts!r}, --changed {changed!r}: not numbers") from error
    return MixPlan(
        counts=numbers,
        shares=shares,
        prompt_tokens=plan.lengths[0][0],
        output_tokens=plan.lengths[0][1],
        concurrency=plan.concurrencies[0],
        repeats=plan.repeats,
        threads=plan.threads,
        kv_mib=plan.kv_mib,
    )


def _measure(arms: dict[str, list[str]], plan: Plan, result: str, keep: bool) -> Path:
    """Measure, writing the result file after every cell."""
    from benchmarks.common.result_file import RESULTS, write_result
    from benchmarks.engine import speed as bench

    path = RESULTS / f"{result}.json"
    old: dict[str, Any] = {"rows": [], "command": ""}
    if keep and path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
    # Ended from outside, it still lets go on, and ends, the arms that wait stopped for their turn.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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
    from benchmarks.common.machine import OtherCpu
    from benchmarks.common.result_file import write_result
    from benchmarks.engine.split import split_of

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
