"""`twofour bench engine`: the CPU engine end to end, sparse and dense in turns."""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofour.commands.bench_options import (
    Concurrency,
    Dense,
    JsonLine,
    KeepRows,
    KvMib,
    Lengths,
    Masks,
    Repeats,
    Sparse,
    Threads,
    finish,
    say,
)
from twofour.commands.first_mode import FirstModeGroup
from twofour.commands.option_values import named_masks, number_pairs, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.common.result_file import ResultRow

_Option = typer.Option
_LENGTHS = "128/128,128/512,1024/128"

app = typer.Typer(cls=FirstModeGroup, help="Measure the CPU engine; without a mode, its speed.")


@app.command("speed")
def speed(
    dense: Dense = None,
    sparse: Sparse = None,
    arm: Annotated[
        list[str] | None,
        _Option(help="NAME=DIR, another engine directory of the same model (repeat)."),
    ] = None,
    reference: Annotated[str, _Option(help="The arm that ratios are taken against.")] = "sparse",
    model: Annotated[
        str | None,
        _Option(help="The dense model: vLLM's, and without --dense and --sparse also built from."),
    ] = None,
    mask: Masks = None,
    peer: Annotated[
        list[str] | None,
        _Option(
            help="Another engine (repeat): vllm-dense=PYTHON or vllm-zentorch=PYTHON of an"
            " environment with vLLM, llama.cpp-TYPE=FILE.gguf, ik-TYPE=FILE.gguf."
        ),
    ] = None,
    vllm_dtype: Annotated[str, _Option(help="vLLM's number type: bfloat16, float32.")] = "bfloat16",
    vllm_binding: Annotated[
        str, _Option(help="VLLM_CPU_OMP_THREADS_BIND: nobind, auto, all.")
    ] = "nobind",
    lengths: Lengths = _LENGTHS,
    concurrency: Concurrency = "1,4,8,16,32",
    repeats: Repeats = 3,
    threads: Threads = 0,
    kv_mib: KvMib = 256,
    keep: KeepRows = False,
    result: Annotated[str, _Option(help="Name of the result file.")] = "bench-engine",
    json_: JsonLine = False,
) -> None:
    """Measure the arms in turns; the result file is written after every cell.

    Of --dense and --sparse, one alone measures that arm alone.
    """
    from benchmarks.common.engine_directories import engine_pair
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.engine.arms import engine_command, peer_commands
    from benchmarks.engine.speed import KEY, SpeedPlan, measure
    from benchmarks.pages import page_of
    from engines.directory.manifest import read_manifest
    from maskgen.models import resolve_model

    plan = SpeedPlan(
        lengths=number_pairs(lengths, "--lengths", "/"),
        concurrencies=numbers(concurrency, "--concurrency"),
        repeats=repeats,
        threads=threads or len(os.sched_getaffinity(0)),
        kv_mib=kv_mib,
        reference=reference,
    )
    dense_model = resolve_model(model) if model and peer else None
    peers = peer_commands(peer or [], dense_model, plan, dtype=vllm_dtype, binding=vllm_binding)
    given = {
        name: path for name, path in (("sparse", sparse), ("dense", dense)) if path is not None
    }
    given |= _directories(arm or [])
    if given and mask:
        raise ValueError("give --dense and --sparse, or --model and --mask")
    built = nullcontext() if given else engine_pair(None, None, model, named_masks(mask or []))
    with built as pair:
        own = given if pair is None else {"sparse": pair[1], "dense": pair[0]}
        name = read_manifest(next(iter(own.values()))).model
        spec = TableSpec(result, KEY, page_of(result), lambda rows: {"model": name})
        table = Table(spec, Earlier.KEEP if keep else Earlier.DROP)
        commands = {arm: engine_command(path, plan) for arm, path in own.items()} | peers
        if reference not in commands and reference != "sparse":
            raise ValueError(f"--reference {reference!r} is none of {', '.join(commands)}")
        for rows in measure(commands, plan, say):
            table.put(rows)
            _tell(rows)
    finish(table.path, json_)


@app.command("split")
def split(
    dense: Dense = None,
    sparse: Sparse = None,
    model: Annotated[str | None, _Option(help="Instead of both: what to build them from.")] = None,
    mask: Masks = None,
    contexts: Annotated[str, _Option(help="Tokens before the step, separated by commas.")] = (
        "128,1024"
    ),
    threads: Threads = 0,
    json_: JsonLine = False,
) -> None:
    """Where the time of a decode step goes (docs/results/engine-split.json)."""
    from benchmarks.common.engine_directories import engine_pair
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.engine.pages import split_page
    from benchmarks.engine.split import KEY, split_of

    table = Table(TableSpec("engine-split", KEY, split_page), Earlier.DROP)
    cores = threads or len(os.sched_getaffinity(0))
    with engine_pair(dense, sparse, model, named_masks(mask or [])) as directories:
        for arm, directory in zip(("dense", "sparse"), directories, strict=True):
            for context in numbers(contexts, "--contexts"):
                table.measure(
                    (arm, context),
                    lambda directory=directory, context=context: split_of(  # type: ignore[misc]
                        directory, threads=cores, context=context
                    ),
                )
                row = table[(arm, context)]
                say("  ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float)))
    finish(table.path, json_)


@app.command("mix")
def mix(
    sparse: Annotated[
        Path | None, _Option(help="Engine directory with one mask, the base; not --sealed.")
    ] = None,
    model: Annotated[
        str | None, _Option(help="Instead: build it from this model and the first --mask.")
    ] = None,
    mask: Annotated[
        list[str] | None,
        _Option(help="NAME=FILE or FILE: further masks are measured beside synthetic ones."),
    ] = None,
    counts: Annotated[str, _Option(help="How many masks are resident.")] = "1,2,4,8,16",
    changed: Annotated[
        str, _Option(help="Per cent of groups that synthetic masks change.")
    ] = "0.3,3,20,50",
    lengths: Lengths = "8/32",
    concurrency: Annotated[int, _Option(help="Requests at a time.", min=1)] = 16,
    repeats: Repeats = 3,
    threads: Threads = 0,
    kv_mib: KvMib = 256,
    json_: JsonLine = False,
) -> None:
    """Many masks in one engine, patched, copied and switched (docs/results/mask-mix.json)."""
    from benchmarks.common.engine_directories import build_engine
    from benchmarks.engine.mix import measure_mix
    from benchmarks.engine.mix_plan import MixPlan

    pairs = number_pairs(lengths, "--lengths", "/")
    if len(pairs) > 1:
        raise ValueError(f"--lengths {lengths!r}: give one pair")
    plan = MixPlan(
        counts=numbers(counts, "--counts"),
        shares=_shares(changed),
        prompt_tokens=pairs[0][0],
        output_tokens=pairs[0][1],
        concurrency=concurrency,
        repeats=repeats,
        threads=threads or len(os.sched_getaffinity(0)),
        kv_mib=kv_mib,
    )
    masks = named_masks(mask or [])
    if missing := [file for file in masks.values() if not file.is_file()]:
        raise ValueError(f"--mask: {missing[0]} does not exist")
    with tempfile.TemporaryDirectory(prefix="twofour-masks-") as name:
        folder = Path(name)
        if sparse is None:
            if model is None or not masks:
                raise ValueError("give --sparse, or --model and --mask for the base")
            base = next(iter(masks))
            sparse = build_engine(model, {base: masks.pop(base)}, folder / "engine")
        path = measure_mix(sparse, plan, masks, folder, say)
    finish(path, json_)


def _shares(changed: str) -> tuple[float, ...]:
    try:
        return tuple(float(text) / 100 for text in changed.split(","))
    except ValueError as error:
        raise ValueError(f"--changed {changed!r}: not numbers, separated by commas") from error


def _directories(specs: Sequence[str]) -> dict[str, Path]:
    found = {}
    for spec in specs:
        name, _, path = spec.partition("=")
        if not name or not Path(path).is_dir():
            raise ValueError(f"--arm {spec!r}: give NAME=DIR, an engine directory that exists")
        found[name] = Path(path)
    return found


def _tell(rows: Sequence[ResultRow]) -> None:
    for row in rows:
        say(
            f"  {row['arm']:15} {row['tokens_per_s']:8.1f} tokens/s  prompt"
            f" {row['prompt_tokens_per_s']:8.1f}/s  decode {row['decode_tokens_per_s']:8.1f}/s"
            f"  first {row['ttft_ms']:7.1f} ms  next {row['tpot_ms']:6.2f} ms"
            f"  {row['rss_mib']} MiB  reference / this {row['sparse_ratio']}"
        )


@app.command("second")
def second(
    dense: Annotated[Path, _Option(help="Its dense engine directory.")],
    sparse: Annotated[Path, _Option(help="Its sparse one.")],
    wikitext2: Annotated[Path, _Option(help="Wikitext-2's raw test file.")],
    arm: Annotated[
        list[str] | None,
        _Option(help="NAME=DIR, another engine directory of the same model (repeat)."),
    ] = None,
    reference: Annotated[str, _Option(help="The arm that ratios are taken against.")] = "sparse",
    peer: Annotated[
        list[str] | None, _Option(help="llama.cpp-TYPE=FILE.gguf, ik-TYPE=FILE.gguf (repeat).")
    ] = None,
    windows: Annotated[int, _Option(help="Of 2,048 tokens.", min=1)] = 4,
    lengths: Lengths = "128/128",
    repeats: Repeats = 5,
    threads: Threads = 0,
    kv_mib: KvMib = 256,
    json_: JsonLine = False,
) -> None:
    """Quality and speed of another model's arms (docs/results/second-model.json)."""
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.engine.arms import engine_command, peer_commands
    from benchmarks.engine.second_model import KEY, second_model_page, second_model_rows
    from benchmarks.engine.speed import SpeedPlan
    from engines.directory.manifest import read_manifest
    from maskgen.texts.text_sets import load_texts

    cores = threads or len(os.sched_getaffinity(0))
    pairs = number_pairs(lengths, "--lengths", "/")
    plan = SpeedPlan(pairs, (1,), repeats, cores, kv_mib, reference=reference)
    arms = {"dense": dense, "sparse": sparse} | _directories(arm or [])
    peers = peer_commands(peer or [], None, plan, dtype="bfloat16", binding="nobind")
    commands = {arm: engine_command(path, plan) for arm, path in arms.items()} | peers
    if reference not in commands:
        raise ValueError(f"--reference {reference!r} is none of {', '.join(commands)}")
    name, texts = read_manifest(dense).model, load_texts(str(wikitext2))
    table = Table(TableSpec("second-model", KEY, second_model_page), Earlier.KEEP)
    table.put(second_model_rows(name, arms, commands, plan, texts, windows, say))
    finish(table.path, json_)
