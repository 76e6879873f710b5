"""`twofour bench trtllm`: TensorRT-LLM dense against 2:4, in the grid of MaskLLM's paper."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_options import JsonLine, finish
from twofour.commands.option_values import number_pairs

_Option = typer.Option


def trtllm(
    model: Annotated[
        str | None, _Option(help="Alias, directory, GGUF file or Hugging Face id.")
    ] = None,
    mask: Annotated[Path | None, _Option(help="Mask file of the sparse arm.")] = None,
    out: Annotated[Path, _Option(help="Folder for engines, script and reports.")] = Path(
        "results/trtllm"
    ),
    grid: Annotated[
        str, _Option(help="PROMPT/GENERATED tokens, separated by commas; the paper's by default.")
    ] = "128/128,128/2048,2048/128,2048/2048",
    requests: Annotated[int, _Option(help="Requests of every cell.")] = 10,
    concurrency: Annotated[int, _Option(help="Requests at a time; 1 in the paper.")] = 1,
    tp_size: Annotated[int, _Option(help="GPUs of every engine.")] = 1,
    report: Annotated[
        Path | None, _Option(help="Only show what was measured in this folder.")
    ] = None,
    json_: JsonLine = False,
) -> None:
    """Measure three TensorRT-LLM engines; without a GPU, write the script that does."""
    if report is not None:
        _report(report, json_)
        return
    if model is None or mask is None:
        raise ValueError("give --model and --mask, or --report FOLDER")
    from benchmarks.trtllm.plan import GridPlan, write_plan
    from engines.tensorrt_llm.version import find_environment
    from maskgen.models import model_name, resolve_model

    plan = GridPlan(
        model=resolve_model(model),
        name=model_name(model),
        mask=mask,
        folder=out,
        grid=number_pairs(grid, "--grid", "/"),
        requests=requests,
        concurrency=concurrency,
        tp_size=tp_size,
    )
    script = write_plan(plan)
    environment = find_environment()
    if environment.problems:
        missing = "; ".join(environment.problems)
        typer.echo(f"nothing was measured: {missing}. The script is ready: {script}", err=True)
        raise typer.Exit(3)
    if subprocess.run(["bash", str(script.absolute())], check=False).returncode:
        raise ValueError(f"{script} failed; what it measured so far is kept in {out}")
    if json_:
        _report(out, json_)


def _report(folder: Path, json_: bool) -> None:
    import dataclasses

    from rich.console import Console

    from benchmarks.common.result_file import this_command, write_result
    from benchmarks.trtllm.page import trtllm_page
    from benchmarks.trtllm.report import read_reports, table
    from engines.tensorrt_llm.version import find_gpus, installed_version

    rows = read_reports(folder)
    Console(stderr=json_).print(table(rows))
    path = write_result(
        "trtllm",
        trtllm_page,
        [dataclasses.asdict(row) for row in rows],
        command=this_command(),
        tensorrt_llm=installed_version(),
        gpus=find_gpus(),
    )
    finish(path, json_)
