"""`twofour bench engine`: the CPU engine end to end, sparse and dense in turns."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_Option = typer.Option


def engine(
    dense: Annotated[Path | None, _Option(help="Engine directory without masks.")] = None,
    sparse: Annotated[Path | None, _Option(help="Engine directory of the same model.")] = None,
    model: Annotated[
        str | None, _Option(help="Instead of both: build them from this model and --mask.")
    ] = None,
    mask: Annotated[
        list[str] | None, _Option(help="NAME=FILE or FILE, as `twofour build` takes them.")
    ] = None,
    lengths: Annotated[
        str, _Option(help="Prompt/output tokens, separated by commas.")
    ] = "128/128,128/512,1024/128",
    concurrency: Annotated[str, _Option(help="Requests at a time.")] = "1,4,8,16,32",
    repeats: Annotated[int, _Option(help="Waves of every arm in every cell.")] = 3,
    threads: Annotated[int, _Option(help="OpenMP threads of every arm.")] = 0,
    vllm_python: Annotated[
        Path | None, _Option(help="Python of an environment with vLLM (needs --model).")
    ] = None,
    llama_bench: Annotated[Path | None, _Option(help="llama.cpp's llama-bench.")] = None,
    gguf: Annotated[
        list[str] | None, _Option(help="TYPE=FILE for llama-bench, such as bf16=model.gguf.")
    ] = None,
    split: Annotated[
        bool, _Option(help="Instead: where the time of a decode step goes (engine-split.json).")
    ] = False,
    json_: Annotated[
        bool, _Option("--json", help="Print the result as JSON, as the last line.")
    ] = False,
) -> None:
    """Measure both arms of the CPU engine, and write docs/results/bench-engine.json."""
    from benchmarks.engine import Plan
    from twofour.commands.bench_serve import _engines

    plan = Plan(
        lengths=tuple(_pair(text) for text in lengths.split(",")),
        concurrencies=tuple(int(text) for text in concurrency.split(",")),
        repeats=repeats,
        threads=threads or len(os.sched_getaffinity(0)),
    )
    if vllm_python is not None and model is None:
        raise ValueError("--vllm-python needs --model: vLLM runs the dense model itself")
    with _engines(dense, sparse, model, mask or []) as (dense_dir, sparse_dir):
        if split:
            path = _split(dense_dir, sparse_dir, plan)
        else:
            ggufs = {name: Path(file) for name, _, file in (g.partition("=") for g in gguf or [])}
            path = _measure(dense_dir, sparse_dir, model, plan, vllm_python, llama_bench, ggufs)
    if json_:
        typer.echo(json.dumps(json.loads(path.read_text(encoding="utf-8"))))


def _measure(
    dense: Path,
    sparse: Path,
    model: str | None,
    plan: Any,
    vllm_python: Path | None,
    llama_bench: Path | None,
    ggufs: dict[str, Path],
) -> Path:
    from benchmarks import engine as bench
    from benchmarks.machine import OtherCpu
    from benchmarks.result_file import write_result

    most = max(plan.concurrencies)
    arms = {
        "sparse": bench.engine_command(sparse, plan.threads, most),
        "dense": bench.engine_command(dense, plan.threads, most),
    }
    if vllm_python is not None and model is not None:
        from maskgen.models import resolve_model

        arms["vllm-dense"] = bench.vllm_command(
            vllm_python, resolve_model(model), plan.threads, most
        )
    rows = []
    with OtherCpu() as other:
        for row in bench.measure(arms, plan, lambda line: typer.echo(line, err=True)):
            typer.echo(
                f"  {row.arm:12} {row.tokens_per_s:8.1f} tokens/s  prompt"
                f" {row.prompt_tokens_per_s:8.1f}/s  decode {row.decode_tokens_per_s:8.1f}/s"
                f"  first {row.ttft_ms:7.1f} ms  next {row.tpot_ms:6.2f} ms  {row.rss_mib} MiB",
                err=True,
            )
            rows.append(row)
        if llama_bench is not None:
            rows += bench.llama_rows(llama_bench, ggufs, plan)
    return write_result(
        "bench-engine", _command(), bench.as_rows(rows), other_cpu_share=other.share
    )


def _split(dense: Path, sparse: Path, plan: Any) -> Path:
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
