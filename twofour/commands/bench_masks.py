"""`twofour bench masks`: mask quality by method, domain and setting; what learning costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from twofour.commands.bench_masks_inputs import (
    finish_table,
    open_table,
    open_workbench,
    parse_base_and_mask,
    parse_directory_and_mask,
    parse_domain,
    parse_masks,
    parse_overrides,
    read_general_texts,
    show_rows,
)
from twofour.commands.bench_masks_options import (
    C4,
    CalibrationLength,
    CalibrationWindows,
    Dtype,
    FirstWindows,
    Learn,
    MethodSettings,
    Model,
    Wikitext2,
    Work,
)
from twofour.commands.bench_masks_step import step
from twofour.commands.bench_masks_structure import structure
from twofour.commands.bench_options import JsonLine, RedoRows, finish
from twofour.commands.first_mode import FirstModeGroup

_Option = typer.Option


app = typer.Typer(
    cls=FirstModeGroup,
    help="Measure masks row by row; without a mode, the league of methods. What is in the result"
    " file already is not measured again.",
)


@app.command("league")
def league(
    model: Model = "smollm2-135m",
    learn: Learn = None,
    wikitext2: Wikitext2 = "wikipedia:test",
    c4: C4 = "c4",
    only: Annotated[list[str] | None, _Option(help="Only this method (repeat).")] = None,
    mask: Annotated[
        list[str] | None,
        _Option(help="METHOD=FILE: take the mask of a learned method from a file (repeat)."),
    ] = None,
    settings: MethodSettings = None,
    plot: Annotated[
        bool, _Option("--plot", help="Draw docs/results/masks-curve.png from all rows.")
    ] = False,
    dtype: Dtype = "auto",
    windows: FirstWindows = None,
    calibration_windows: CalibrationWindows = 64,
    calibration_length: CalibrationLength = 1024,
    work: Work = Path("runs/masks"),
    result: Annotated[str, _Option(help="Name of the result file.")] = "masks",
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Quality by method (docs/results/masks.json)."""
    from benchmarks.common.result_file import RESULTS
    from benchmarks.common.table import TableSpec
    from benchmarks.masks.league import KEY, run_league
    from benchmarks.masks.plot import plot_curves
    from benchmarks.pages import page_of

    if result != "masks" and not result.startswith("masks-"):
        raise ValueError(f"--result {result!r} is none of the league: masks or masks-SUFFIX")
    console = Console(stderr=json_)
    bench = open_workbench(
        model, work, console, calibration_windows, calibration_length, windows, dtype
    )
    texts = read_general_texts(learn, wikitext2, c4)
    drawn = f"{result}-curve.png"
    picture = {"picture": drawn} if plot else {}
    spec = TableSpec(result, KEY, page_of(result), lambda rows: {"model": bench.name, **picture})
    table = open_table(spec, bench, texts.digests(), redo)
    given = parse_masks(mask or [])
    run_league(bench, texts, table, parse_overrides(settings or []), set(only or ()), given)
    if plot:
        plot_curves(RESULTS / drawn, table.rows())
        table.put([])
    finish_table(table, console, json_)


@app.command("patterns")
def patterns(
    model: Model = "smollm2-135m",
    learn: Learn = None,
    wikitext2: Wikitext2 = "wikipedia:test",
    c4: C4 = "c4",
    pattern: Annotated[
        list[str] | None, _Option(help="N:M (repeat). [2:4, 4:8, 8:16, 16:32]")
    ] = None,
    only: Annotated[list[str] | None, _Option(help="Only this method (repeat).")] = None,
    settings: MethodSettings = None,
    dtype: Dtype = "auto",
    windows: FirstWindows = None,
    calibration_windows: CalibrationWindows = 64,
    calibration_length: CalibrationLength = 1024,
    work: Work = Path("runs/masks"),
    result: Annotated[str, _Option(help="Name of the result file.")] = "patterns",
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Quality by pattern and method (docs/results/patterns.json)."""
    from benchmarks.common.table import TableSpec
    from benchmarks.masks.patterns import KEY, METHODS, run_patterns
    from benchmarks.pages import page_of
    from maskgen.format.pattern import Pattern

    if unknown := sorted(set(only or ()) - set(METHODS)):
        raise ValueError(f"--only {unknown[0]!r} is none of {', '.join(METHODS)}")
    chosen = [Pattern.parse(text) for text in pattern or ("2:4", "4:8", "8:16", "16:32")]
    console = Console(stderr=json_)
    bench = open_workbench(
        model, work, console, calibration_windows, calibration_length, windows, dtype
    )
    texts = read_general_texts(learn, wikitext2, c4)
    spec = TableSpec(result, KEY, page_of(result), lambda rows: {"model": bench.name})
    table = open_table(spec, bench, texts.digests(), redo)
    changed = parse_overrides(settings or [])
    run_patterns(bench, texts, table, chosen, set(only or METHODS), changed)
    finish_table(table, console, json_)


app.command("structure")(structure)
app.command("step")(step)


@app.command("domains")
def domains(
    general: Annotated[Path, _Option(help="The general mask.")],
    domain: Annotated[
        list[str], _Option(help="NAME=TRAIN,TEST or NAME=TRAIN,TEST,SEEDS (repeat).")
    ],
    general_prior: Annotated[
        Path | None,
        _Option(help="What --general was learned from: adds an arm that grafts its changes."),
    ] = None,
    start: Annotated[
        list[str] | None,
        _Option(help="Learn from this start alone: scratch, transfer or graft (repeat)."),
    ] = None,
    model: Model = "smollm2-135m",
    settings: MethodSettings = None,
    dtype: Dtype = "auto",
    windows: FirstWindows = None,
    calibration_windows: CalibrationWindows = 64,
    calibration_length: CalibrationLength = 1024,
    work: Work = Path("runs/masks"),
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Masks of domains' own texts, from three starts (docs/results/domains.json).

    Of the general mask's pattern (16:32 in docs/results/domains-16-32.json), learned by RoI.
    """
    from benchmarks.common.table import TableSpec
    from benchmarks.masks.domains import KEY, METHOD, STARTS, General, run_domains
    from benchmarks.masks.pages import domains_page
    from maskgen.format.mask_file import read_mask
    from maskgen.format.pattern import TWO_FOUR

    for name in start or []:
        if name not in STARTS:
            raise ValueError(f"--start {name} is none of {', '.join(STARTS)}")
    if start == ["graft"] and general_prior is None:
        raise ValueError("--start graft needs --general-prior, the mask that --general began from")

    console = Console(stderr=json_)
    bench = open_workbench(
        model, work, console, calibration_windows, calibration_length, windows, dtype
    )
    found = [parse_domain(spec) for spec in domain]
    base = General(read_mask(general), read_mask(general_prior) if general_prior else None)
    inputs = {name: digest for d in found for name, digest in d.digests().items()}
    inputs["general mask"] = base.mask.digest
    if base.prior is not None:
        inputs["general mask's prior"] = base.prior.digest
    pattern = base.mask.pattern
    result = "domains" if pattern == TWO_FOUR else f"domains-{pattern.n}-{pattern.m}"
    table = open_table(TableSpec(result, KEY, domains_page), bench, inputs, redo)
    changed = parse_overrides(settings or [])
    if other := sorted(changed.keys() - {METHOD}):
        raise ValueError(f"--set {other[0]}: masks of domains are learned by {METHOD}")
    run_domains(bench, found, table, base, changed, start or STARTS)
    finish_table(table, console, json_)


@app.command("ablations")
def ablations(
    model: Model = "smollm2-135m",
    learn: Learn = None,
    wikitext2: Wikitext2 = "wikipedia:test",
    c4: C4 = "c4",
    settings: MethodSettings = None,
    dtype: Dtype = "auto",
    windows: FirstWindows = None,
    calibration_windows: CalibrationWindows = 64,
    calibration_length: CalibrationLength = 1024,
    work: Work = Path("runs/masks"),
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """MaskLLM with one setting changed at a time (docs/results/mask-ablations.json)."""
    from benchmarks.common.table import TableSpec
    from benchmarks.masks.ablations import KEY, run_ablations
    from benchmarks.masks.pages import ablations_page

    console = Console(stderr=json_)
    bench = open_workbench(
        model, work, console, calibration_windows, calibration_length, windows, dtype
    )
    texts = read_general_texts(learn, wikitext2, c4)
    table = open_table(
        TableSpec("mask-ablations", KEY, ablations_page), bench, texts.digests(), redo
    )
    run_ablations(bench, texts, table, parse_overrides(settings or []))
    finish_table(table, console, json_)


@app.command("products")
def products(
    model: Model = "smollm2-135m",
    learn: Learn = None,
    wikitext2: Wikitext2 = "wikipedia:test",
    c4: C4 = "c4",
    swappable: Annotated[
        list[str] | None,
        _Option(help="FILE: a mask of the model, or DIR=FILE: of another base of it (repeat)."),
    ] = None,
    single: Annotated[
        list[str] | None,
        _Option(help="DIR=FILE: a model that twofour recover made, and its mask (repeat)."),
    ] = None,
    tasks: Annotated[
        str | None, _Option(help="As those of twofour eval, separated by commas: adds accuracies.")
    ] = None,
    limit: Annotated[
        int | None, _Option(help="Only the first N questions of every task.", min=1)
    ] = None,
    dtype: Dtype = "auto",
    windows: FirstWindows = None,
    work: Work = Path("runs/masks"),
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Dense model, masks of it, and recovered models (docs/results/products.json)."""
    from benchmarks.common.table import TableSpec
    from benchmarks.masks.products import KEY, Product, run_products, shared_runs
    from benchmarks.masks.products import single as recovered
    from benchmarks.masks.products_page import products_page
    from benchmarks.masks.zero_shot import ask_products

    console = Console(stderr=json_)
    bench = open_workbench(model, work, console, 1, 2, windows, dtype)
    texts = read_general_texts(learn, wikitext2, c4)
    found = [Product("dense", bench.directory, None, {})]
    for spec in swappable or ():
        base, file = parse_base_and_mask(spec, str(bench.directory))
        found.append(Product("swappable", Path(base), file, {}))
    found += [recovered(*parse_directory_and_mask(spec)) for spec in single or ()]
    shared = {t.name: round(shared_runs(texts.learn, t), 5) for t in (texts.wikitext2, texts.c4)}
    kind = TableSpec("products", KEY, products_page, lambda rows: {"shared_runs": shared})
    asked = {"questions": f"{tasks}, the first {limit or 'all'}"} if tasks else {}
    table = open_table(kind, bench, {**texts.digests(), **asked}, redo)
    run_products(bench, texts, table, found)
    ask_products(table, found, tasks.split(",") if tasks else (), limit)
    finish_table(table, console, json_)


@app.command("permutation")
def permutation(
    model: Model = "smollm2-135m",
    learn: Learn = None,
    wikitext2: Wikitext2 = "wikipedia:test",
    c4: C4 = "c4",
    only: Annotated[list[str] | None, _Option(help="Only this transform (repeat).")] = None,
    method: Annotated[list[str] | None, _Option(help="Only this method (repeat).")] = None,
    seeds: Annotated[int, _Option(help="Of transforms, with Wanda.", min=1)] = 1,
    dtype: Dtype = "auto",
    windows: FirstWindows = None,
    calibration_windows: CalibrationWindows = 64,
    calibration_length: CalibrationLength = 1024,
    work: Work = Path("runs/masks"),
    result: Annotated[str, _Option(help="Name of the result file.")] = "permutation",
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Masks of the model in other bases (docs/results/permutation.json)."""
    from benchmarks.common.table import TableSpec
    from benchmarks.masks.permutation import CELLS, KEY, run_permutation
    from benchmarks.pages import page_of

    for given, known in ((only, {t for t, _ in CELLS}), (method, {m for _, m in CELLS})):
        for name in given or ():
            if name not in known:
                raise ValueError(f"{name!r} has no row; there are {', '.join(sorted(known))}")
    console = Console(stderr=json_)
    bench = open_workbench(
        model, work, console, calibration_windows, calibration_length, windows, dtype
    )
    texts = read_general_texts(learn, wikitext2, c4)
    spec = TableSpec(result, KEY, page_of(result), lambda rows: {"model": bench.name})
    table = open_table(spec, bench, texts.digests(), redo)
    run_permutation(bench, texts, table, only or (), method or (), seeds)
    finish_table(table, console, json_)


@app.command("cost")
def cost(model: Model = "smollm2-135m", dtype: Dtype = "auto", json_: JsonLine = False) -> None:
    """What sampling masks costs beside the matrix products (docs/results/mask-cost.json)."""
    from benchmarks.common.machine import OtherCpu
    from benchmarks.common.result_file import this_command, write_result
    from benchmarks.masks.cost import measure_cost
    from benchmarks.masks.pages import cost_page
    from maskgen.models import resolve_model
    from maskgen.selection import select_layers
    from maskgen.torch_model import load_model

    loaded = load_model(resolve_model(model), dtype, "cpu")
    shapes = [(la.out_features, la.in_features) for la in select_layers(loaded).layers.values()]
    with OtherCpu() as other:
        rows = measure_cost(shapes, tokens=2048, repeats=8, with_torch=True, dtype=dtype)
    path = write_result(
        "mask-cost",
        cost_page,
        rows,
        command=this_command(),
        other_cpu_share=round(other.share, 3),
    )
    show_rows(Console(stderr=json_), rows)
    finish(path, json_)
