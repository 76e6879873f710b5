"""`twofour bench masks`: mask quality by method, domain and setting; what learning costs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from benchmarks.masks.league import Domain, Texts
    from benchmarks.masks.workbench import Workbench

_Option = typer.Option


def masks(
    model: Annotated[str, _Option(help="Alias, directory or Hugging Face id.")] = "smollm2-135m",
    learn: Annotated[
        list[str] | None, _Option(help="Text to learn and calibrate on (repeat). [wikipedia:train]")
    ] = None,
    wikitext2: Annotated[str, _Option(help="First evaluation text.")] = "wikipedia:test",
    c4: Annotated[str, _Option(help="Second evaluation text.")] = "c4",
    domain: Annotated[
        list[str] | None,
        _Option(help="NAME=TRAIN,TEST or NAME=TRAIN,TEST,SEEDS, for --domains (repeat)."),
    ] = None,
    general: Annotated[Path | None, _Option(help="The general mask, for --domains.")] = None,
    general_prior: Annotated[
        Path | None,
        _Option(help="What --general was learned from: adds an arm that grafts its changes."),
    ] = None,
    domains: Annotated[bool, _Option("--domains", help="Measure the domain table.")] = False,
    ablations: Annotated[bool, _Option("--ablations", help="Measure the ablations.")] = False,
    cost: Annotated[bool, _Option("--cost", help="Measure what sampling masks costs.")] = False,
    only: Annotated[
        list[str] | None, _Option(help="Only this method of the league (repeat).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _Option(
            "--set",
            help="METHOD.NAME=VALUE in place of the benchmark's setting, such as maskllm.steps=200"
            " (repeat); domains and ablations learn with maskllm.",
        ),
    ] = None,
    mask: Annotated[
        list[str] | None,
        _Option(
            help="METHOD=FILE: take the league's mask of a learned method from a file (repeat)."
        ),
    ] = None,
    plot: Annotated[
        Path | None, _Option(help="Draw the learned methods' perplexity against tokens seen.")
    ] = None,
    dtype: Annotated[str, _Option(help="bf16, fp32, or auto: what is fast here.")] = "auto",
    windows: Annotated[
        int | None, _Option(help="Evaluate on the first N windows only.", min=1)
    ] = None,
    calibration_windows: Annotated[int, _Option(help="For one-shot methods.", min=1)] = 64,
    calibration_length: Annotated[int, _Option(help="Tokens in one of them.", min=2)] = 1024,
    work: Annotated[Path, _Option(help="Unfinished runs and masks.")] = Path("runs/masks"),
    redo: Annotated[bool, _Option("--redo", help="Measure rows that are there again.")] = False,
    json_: Annotated[
        bool, _Option("--json", help="Print the result as JSON, as the last line.")
    ] = False,
) -> None:
    """Measure masks row by row; what is in the result file already is not measured again."""
    from benchmarks.common.table import Table
    from benchmarks.masks.league import General, Texts
    from benchmarks.masks.league import ablations as run_ablations
    from benchmarks.masks.league import domains as run_domains
    from benchmarks.masks.league import league as run_league
    from benchmarks.masks.plot import plot_curves
    from benchmarks.masks.workbench import Workbench
    from maskgen.data import TextSet, load_texts
    from maskgen.maskfile import read_mask
    from maskgen.models import model_name, resolve_model

    console = Console(stderr=json_)
    directory = resolve_model(model)
    if cost:
        _cost(directory, dtype, json_, console)
        return
    if domains and (general is None or not domain):
        raise ValueError("--domains needs --general MASK and at least one --domain NAME=TRAIN,TEST")
    if not domains and (general or general_prior or domain):
        raise ValueError("--general, --general-prior and --domain are for --domains; add it")
    bench = Workbench(
        model_name(model),
        directory,
        work,
        console,
        windows=calibration_windows,
        length=calibration_length,
        limit=windows,
        dtype=dtype,
    )
    named = learn or ["wikipedia:train"]
    texts = Texts(
        TextSet.of("learn", [text for name in named for text in load_texts(name).texts]),
        TextSet.of("wikitext2", load_texts(wikitext2).texts),
        TextSet.of("c4", load_texts(c4).texts),
        tuple(_domain(spec) for spec in domain or ()),
    )
    changed = _overrides(settings or [])
    name = "domains" if domains else "mask-ablations" if ablations else "masks"
    key = {"domains": ("domain", "seed"), "mask-ablations": ("what", "value"), "masks": ("method",)}
    inputs = {**_inputs(bench, texts, name), "number of windows": str(windows or "all")}
    start = None
    if domains and general is not None:
        prior = None if general_prior is None else read_mask(general_prior)
        start = General(read_mask(general), prior)
        inputs["general mask"] = start.mask.digest
        if prior is not None:
            inputs["general mask's prior"] = prior.digest
    table = Table(name, key[name], shlex.join(["twofour", *sys.argv[1:]]), inputs, redo)
    if start is not None:
        run_domains(bench, texts, table, start, changed)
    elif ablations:
        run_ablations(bench, texts, table, changed)
    else:
        run_league(bench, texts, table, changed, set(only or ()), _given(mask or []))
    _show(console, table.rows())
    if plot is not None:
        plot_curves(plot, table.rows())
    if json_:
        typer.echo((Path("docs/results") / f"{name}.json").read_text().replace("\n", ""))


def _inputs(bench: Workbench, texts: Texts, name: str) -> dict[str, str]:
    digests = texts.digests()
    if name != "domains":
        return {"model": bench.digest(), **digests}
    # The domain table learns and measures on the domains' own texts alone.
    return {
        "model": bench.digest(),
        **{what: digest for what, digest in digests.items() if ":" in what},
    }


def _domain(spec: str) -> Domain:
    from benchmarks.masks.league import Domain
    from maskgen.data import load_texts

    name, _, rest = spec.partition("=")
    parts = rest.split(",")
    if not name or len(parts) not in (2, 3) or not (parts[2:] or ["1"])[0].isdigit():
        raise ValueError(f"--domain {spec!r} is not NAME=TRAIN,TEST or NAME=TRAIN,TEST,SEEDS")
    seeds = int(parts[2]) if len(parts) == 3 else 1
    return Domain(name, load_texts(parts[0]), load_texts(parts[1]), seeds)


def _given(specs: list[str]) -> dict[str, Path]:
    from benchmarks.masks.league import LEARNED

    files: dict[str, Path] = {}
    for spec in specs:
        method, _, file = spec.partition("=")
        if method not in LEARNED or not Path(file).is_file():
            raise ValueError(
                f"--mask {spec!r} is not METHOD=FILE with one of {', '.join(LEARNED)} and a file"
            )
        files[method] = Path(file)
    return files


def _overrides(given: list[str]) -> dict[str, dict[str, Any]]:
    from benchmarks.masks.league import LEARNED
    from twofour.commands.mask_learn import parse_settings

    changed: dict[str, dict[str, Any]] = {}
    for spec, value in parse_settings(given).items():
        method, dot, name = spec.partition(".")
        if not dot or method not in LEARNED:
            raise ValueError(
                f"--set {spec}={value} is not METHOD.NAME=VALUE with one of {', '.join(LEARNED)}"
            )
        changed.setdefault(method, {})[name] = value
    return changed


def _cost(directory: Path, dtype: str, json_: bool, console: Console) -> None:
    from benchmarks.common.machine import OtherCpu
    from benchmarks.common.result_file import write_result
    from benchmarks.masks.cost import measure_cost
    from maskgen.hf import load_model
    from maskgen.selection import select_layers

    model = load_model(directory, dtype, "cpu")
    shapes = [(la.out_features, la.in_features) for la in select_layers(model).layers.values()]
    with OtherCpu() as other:
        rows = measure_cost(shapes, tokens=2048, repeats=8, with_torch=True, dtype=dtype)
    command = shlex.join(["twofour", *sys.argv[1:]])
    path = write_result("mask-cost", command, rows, other_cpu_share=round(other.share, 3))
    _show(console, rows)
    if json_:
        typer.echo(json.dumps(json.loads(path.read_text())))


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    plain = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
    names = list(dict.fromkeys(name for row in plain for name in row if "digest" not in name))
    table = Table(*names)
    for row in plain:
        table.add_row(*(str(row.get(name, "")) for name in names))
    console.print(table)
