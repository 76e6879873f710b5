"""`twofour bench vllm`: sparse and dense through vLLM; run it in vLLM's environment."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from twofour.commands.bench_options import JsonLine, KeepRows, finish, say
from twofour.commands.first_mode import FirstModeGroup
from twofour.commands.option_values import numbers

_Option = typer.Option

app = typer.Typer(
    cls=FirstModeGroup, help="Measure vLLM, in its environment; without a mode, its speed."
)


@app.command("speed")
def speed(
    model: Annotated[str, _Option(help="Alias or directory.")] = "smollm2-135m",
    mask: Annotated[Path | None, _Option(help="Mask file. [magnitude, made now]")] = None,
    arms: Annotated[
        str, _Option(help="sparse, own-dense, dense, dense-fp32, or zentorch alone.")
    ] = "sparse,own-dense,dense,dense-fp32",
    modes: Annotated[str, _Option(help="eager, compiled.")] = "eager,compiled",
    bindings: Annotated[str, _Option(help="all, nobind, auto.")] = "all,nobind",
    batches: Annotated[str, _Option(help="Requests at a time, separated by commas.")] = "1,8,32",
    limit: Annotated[
        str | None, _Option(help="ARM=BATCH: its largest batch, where it is hopelessly slow.")
    ] = None,
    prompt_tokens: Annotated[int, _Option(help="Of every request.", min=1)] = 16,
    output_tokens: Annotated[int, _Option(help="Of every request.", min=1)] = 64,
    repeats: Annotated[int, _Option(help="Batches of every arm.", min=1)] = 3,
    keep: KeepRows = False,
    json_: JsonLine = False,
) -> None:
    """Tokens per second of every arm (docs/results/bench-vllm.json)."""
    from benchmarks.common.result_file import read_result, this_command
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.vllm.pages import vllm_speed_page
    from benchmarks.vllm.report import operator_call_us, speed_summary
    from benchmarks.vllm.speed import KEY, VllmPlan, build_arms, measure
    from engines.native import kernels
    from engines.vllm_plugin.version import vllm_version
    from maskgen.format.mask_file import read_mask
    from maskgen.models import model_name, resolve_model

    plan = VllmPlan(
        arms=tuple(arms.split(",")),
        modes=tuple(modes.split(",")),
        bindings=tuple(bindings.split(",")),
        batches=numbers(batches, "--batches"),
        limits=_limits(limit),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        repeats=repeats,
    )
    part: dict[str, Any] = {
        "command": this_command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def facts(rows: Any) -> dict[str, Any]:
        return {
            "vllm": vllm_version(),
            "isa": kernels.isa(),
            "operator_call_us": part["operator_call_us"],
            "summary": speed_summary(rows),
            "parts": [*earlier_parts, part],
        }

    with tempfile.TemporaryDirectory(prefix="twofour-bench-vllm-") as folder:
        directories = build_arms(resolve_model(model), model_name(model), mask, Path(folder))
        part["mask_digest"] = read_mask(directories["mask"]).digest
        part["operator_call_us"] = operator_call_us()
        spec = TableSpec("bench-vllm", KEY, vllm_speed_page, facts)
        table = Table(spec, Earlier.KEEP if keep else Earlier.DROP)
        earlier_parts = read_result(table.path)["parts"] if table.rows() else []
        shares = []
        for rows in measure(plan, directories, say):
            shares += [row["other_cpu_share"] for row in rows]
            part["other_cpu_share"] = max(shares)
            table.put(rows)
    finish(table.path, json_)


@app.command("agreement")
def agreement(
    mask: Annotated[Path, _Option(help="Mask file.")],
    model: Annotated[str, _Option(help="Alias or directory.")] = "smollm2-135m",
    data: Annotated[str, _Option(help="Text for the prompts.")] = "wikipedia:test",
    prompts: Annotated[int, _Option(help="How many.", min=1)] = 24,
    prompt_tokens: Annotated[int, _Option(help="Of every prompt.", min=1)] = 48,
    output_tokens: Annotated[int, _Option(help="Of every prompt.", min=1)] = 64,
    margin: Annotated[float, _Option(help="Log-prob; a smaller one is a toss-up.")] = 0.15,
    eager: Annotated[bool, _Option("--eager", help="Without torch.compile.")] = False,
    json_: JsonLine = False,
) -> None:
    """Greedy tokens against the reference (docs/results/vllm-agreement.json)."""
    from benchmarks.common.result_file import this_command, write_result
    from benchmarks.vllm.agreement import AgreementPlan, check, measure
    from benchmarks.vllm.pages import agreement_page
    from engines.native import kernels
    from engines.vllm_plugin.version import vllm_version
    from maskgen.format.mask_file import read_mask
    from maskgen.texts.text_sets import load_texts

    texts = load_texts(data)
    plan = AgreementPlan(model, mask, prompts, prompt_tokens, output_tokens, margin, eager)
    row = measure(plan, texts.texts, say)
    path = write_result(
        "vllm-agreement",
        agreement_page,
        [row],
        command=this_command(),
        data_digests={texts.name: texts.digest, "mask": read_mask(mask).digest},
        vllm=vllm_version(),
        isa=kernels.isa(),
    )
    finish(path, json_)
    check(row)


def _limits(limit: str | None) -> dict[str, int]:
    if limit is None:
        return {}
    arm, _, most = limit.partition("=")
    return {arm: numbers(most, "--limit")[0]}
