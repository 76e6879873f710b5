"""`twofour demo`: the main job on real weights, end to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from twofour.extras import missing_extra
from twofour.shipped_masks import MaskFolder, masks_in, shipped_masks

if TYPE_CHECKING:
    from benchmarks.serve.compare import ServeComparison

DEMO_MODEL = "smollm2-135m"
GENERAL, DOMAIN = "general", "python"
DOMAIN_PROMPT = "def reverse(text: str) -> str:\n"
# The learned mask has seen Wikipedia, so the web pages of C4 are what is held out for every mask.
CALIBRATION, EVALUATION = "wikipedia:train", "c4"
CALIBRATION_WINDOWS, CALIBRATION_LENGTH = 32, 512
LOWBIT_ARMS: dict[str, Literal["int8", "int4"]] = {"sparse-int8": "int8", "sparse-int4": "int4"}
"""Sparse arms of other values than bf16."""


class StageError(typer.Exit):
    """A stage failed; its name and reason have been printed."""

    def __init__(self) -> None:
        super().__init__(code=1)


@dataclass
class DemoRun:
    """What the stages hand on to each other.

    Attributes:
        out: the folder that everything is written to.
        eval_windows: windows of held-out text for perplexity.
        learned: the learned masks.
        model: directory of the base that they are masks of.
        masks: name -> mask file; the first one is served.
        perplexities: `dense`, a mask's name or an arm of `LOWBIT_ARMS` -> perplexity.
        subset: which windows the perplexities are of.
        comparison: the dense and the sparse server, measured.
    """

    out: Path
    eval_windows: int
    console: Console
    learned: MaskFolder
    model: Path = Path()
    masks: dict[str, Path] = field(default_factory=dict)
    perplexities: dict[str, float] = field(default_factory=dict)
    subset: str = ""
    comparison: ServeComparison | None = None

    @property
    def served(self) -> str:
        """Name of the mask that is served."""
        return next(iter(self.masks))

    def engine(self, arm: str) -> Path:
        """Engine directory of an arm."""
        return self.out / "engines" / arm


def demo(
    out: Annotated[Path, typer.Option(help="Where masks, engines and samples go.")] = Path("demo"),
    eval_windows: Annotated[
        int, typer.Option(help="Windows of 2048 tokens for perplexity.", min=1)
    ] = 6,
    masks: Annotated[
        Path | None,
        typer.Option(help=f"Folder of the learned masks of {DEMO_MODEL} [default: twofour's own]."),
    ] = None,
) -> None:
    """Prune the real SmolLM2-135M, build engines, serve them, and measure sparse beside dense."""
    console = Console(emoji=False)
    run = DemoRun(out=out, eval_windows=eval_windows, console=console, learned=learned_masks(masks))
    out.mkdir(parents=True, exist_ok=True)
    stages = (
        ("data", "model and text", _fetch),
        ("mask", "2:4 mask", _make_masks),
        ("quality", "perplexity", _measure_quality),
        ("build", "engine directories", _build_engines),
        ("values", "perplexity of int8 and int4 values", _measure_values),
        ("serve", "dense and sparse server under load", _serve),
        ("masks", "a mask per request", _ask_each_mask),
    )
    for number, (name, what, stage) in enumerate(stages, start=1):
        with _stage(console, f"{number}/{len(stages)} {what}", name):
            stage(run)
    _print_results(run)


def learned_masks(folder: Path | None) -> MaskFolder:
    """The masks of the folder that was asked for, or those that come with twofour.

    Raises:
        FileNotFoundError: a mask that the demo serves is not there.
    """
    if folder is None:
        return shipped_masks(DEMO_MODEL)
    masks = masks_in(folder)
    for name in (GENERAL, DOMAIN):
        if name not in masks.files:
            raise FileNotFoundError(f"--masks {folder}: there is no {name}.safetensors in it")
    return masks


@contextmanager
def _stage(console: Console, title: str, name: str) -> Iterator[None]:
    """Show progress; name the stage when it fails."""
    console.rule(title, align="left")
    start = time.monotonic()
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        reason = (missing_extra(error) if isinstance(error, ImportError) else None) or str(error)
        console.print(f"[red]stage {name!r} failed:[/]", end=" ")
        console.print(reason, highlight=False, markup=False, soft_wrap=True)
        raise StageError from error
    console.print(f"[dim]{time.monotonic() - start:.0f} s[/]")


def _fetch(run: DemoRun) -> None:
    from maskgen.models import resolve_model
    from maskgen.texts.text_sets import load_texts

    with run.console.status("fetching the text"):
        texts = [load_texts(name) for name in (CALIBRATION, EVALUATION)]
    with run.console.status("fetching the model and dequantising it (once, about half a minute)"):
        run.model = resolve_model(DEMO_MODEL, run.learned.transform)
    turned = "" if run.learned.transform is None else ", in the order of channels of its masks"
    run.console.print(f"{DEMO_MODEL}, dequantised from Q4_1{turned}: {run.model}", soft_wrap=True)
    for text in texts:
        run.console.print(f"{text.name}: {len(text.texts)} documents, {text.digest[:16]}...")


def _make_masks(run: DemoRun) -> None:
    from rich.progress import Progress

    from maskgen.format.mask_file import write_mask
    from maskgen.prune import PruneSettings, prune
    from maskgen.texts.text_sets import load_texts

    run.masks["learned"] = run.learned.files[GENERAL]
    run.console.print(f"learned mask: {run.masks['learned']}", soft_wrap=True)
    file = run.out / "wanda.safetensors"
    settings = PruneSettings(method="wanda", windows=CALIBRATION_WINDOWS, length=CALIBRATION_LENGTH)
    with Progress(console=run.console, transient=True) as bar:
        task = bar.add_task("Wanda, layer by layer", total=None)
        result = prune(
            run.model,
            load_texts(CALIBRATION),
            settings,
            lambda done, count, name: bar.update(task, completed=done, total=count),
        )
    write_mask(file, result.mask)
    run.masks["wanda"] = file
    bits = file.stat().st_size * 8 / result.mask.weights
    run.console.print(
        f"{file}: {len(result.mask.codes)} layers from {result.tokens:,} tokens, "
        f"{bits:.2f} bits per weight",
        highlight=False,
        soft_wrap=True,
    )


def _measure_quality(run: DemoRun) -> None:
    for name, file in [("dense", None), *run.masks.items()]:
        with run.console.status(f"perplexity, {name}"):
            result = _perplexity(run, file)
        run.perplexities[name] = result.perplexity
        run.console.print(f"{name}: perplexity {result.perplexity:.2f}", highlight=False)
    run.subset = result.subset
    run.console.print(
        f"on {EVALUATION}, {result.subset} of 2048 tokens, {result.dtype}", highlight=False
    )


def _perplexity(run: DemoRun, file: Path | None) -> Any:
    from evaluation.perplexity import evaluate
    from maskgen.format.mask_file import read_mask
    from maskgen.format.tokenizer import ModelTokenizer
    from maskgen.texts.text_sets import load_texts
    from maskgen.torch_model import (
        TorchScorer,
        apply_to_module,
        dtype_name,
        load_model,
    )

    network, tokenizer = load_model(run.model, "auto"), ModelTokenizer(run.model)
    if file is not None:
        apply_to_module(network, read_mask(file))
    return evaluate(
        TorchScorer(network),
        tokenizer.encode,
        load_texts(EVALUATION),
        model=DEMO_MODEL,
        mask=None if file is None else file.stem,
        dtype=dtype_name(network),
        bos_token_id=tokenizer.bos_token_id,
        windows=run.eval_windows,
    )


def _build_engines(run: DemoRun) -> None:
    from engines.directory.build import BuildRequest
    from engines.quantisation.options import ValueOptions
    from engines.registry import run_builder

    for arm in ("dense", "sparse", *LOWBIT_ARMS):
        values = ValueOptions(values=LOWBIT_ARMS.get(arm, "bf16"))
        with run.console.status(f"packing the {arm} weights"):
            manifest = run_builder(
                "cpu",
                BuildRequest(
                    model=run.model,
                    model_name=DEMO_MODEL,
                    masks={} if arm == "dense" else _served_masks(run),
                    out=run.engine(arm),
                    overwrite=True,
                    values=values,
                ),
            )
        names = ", ".join(mask.name for mask in manifest.masks) or "none"
        run.console.print(f"{run.engine(arm)}: masks {names}", soft_wrap=True)


def _measure_values(run: DemoRun) -> None:
    for arm in LOWBIT_ARMS:
        with run.console.status(f"perplexity, {arm}"):
            run.perplexities[arm] = _engine_perplexity(run, arm)
        run.console.print(f"{arm}: perplexity {run.perplexities[arm]:.2f}", highlight=False)


def _engine_perplexity(run: DemoRun, arm: str) -> float:
    """Of an engine, by its own log-probs: what rounding activations costs is in it."""
    from evaluation.engine_subject import engine_subject
    from evaluation.perplexity import joined_tokens, measure_perplexity
    from maskgen.texts.text_sets import load_texts

    with engine_subject(run.engine(arm), None) as subject:
        tokens = joined_tokens(subject.encode, load_texts(EVALUATION))
        return measure_perplexity(subject.score, tokens, windows=run.eval_windows)[0]


def _served_masks(run: DemoRun) -> dict[str, Path]:
    """The mask that is measured, and the domain mask that was learned from it."""
    return {run.served: run.masks[run.served], DOMAIN: run.learned.files[DOMAIN]}


def _serve(run: DemoRun) -> None:
    from benchmarks.serve.arms import Arm
    from benchmarks.serve.compare import compare_arms
    from benchmarks.serve.plan import LoadPlan
    from benchmarks.serve.report import notes

    # A demo also runs on a machine with other work on it, and then says so; `bench serve` refuses.
    plan = LoadPlan(concurrencies=(1, 8), requests=8, repeats=3, max_tokens=64, force=True)
    folder = run.out / "load" / time.strftime("%Y%m%d-%H%M%S")
    with run.console.status("starting") as status:
        arms = [
            Arm("dense", run.engine("dense"), kind="dense"),
            *(Arm(arm, run.engine(arm), kind="sparse") for arm in ("sparse", *LOWBIT_ARMS)),
        ]
        run.comparison = compare_arms(arms, plan, folder, status.update)
    run.comparison.require_valid()
    for note in notes(run.comparison):
        run.console.print(note, highlight=False, soft_wrap=True)


def _ask_each_mask(run: DemoRun) -> None:
    from benchmarks.common.server_process import Server

    directory, log = run.engine("sparse"), run.out / "load" / "server-masks.log"
    with Server("sparse", directory, log) as server:
        server.wait_until_healthy()
        for mask in _served_masks(run):
            model = f"{DEMO_MODEL}:{mask}"
            answer = server.complete(model, DOMAIN_PROMPT, max_tokens=24)
            run.console.print(f"{model} continues {DOMAIN_PROMPT!r} with", highlight=False)
            run.console.print(f"  {answer!r}", highlight=False, markup=False, soft_wrap=True)


def _print_results(run: DemoRun) -> None:
    from benchmarks.common.machine import BUSY_SHARE

    comparison = run.comparison
    if comparison is None:
        raise RuntimeError("the serve stage left no comparison")
    served = run.served
    table = Table(title=f"{DEMO_MODEL} (dequantised from Q4_1), one machine, one run")
    table.add_column("")
    arms = ("dense", "sparse", *LOWBIT_ARMS)
    for heading in ("dense", "2:4 bf16", *(f"2:4 {values}" for values in LOWBIT_ARMS.values())):
        table.add_column(heading, justify="right")
    quality = [run.perplexities[arm] for arm in ("dense", served, *LOWBIT_ARMS)]
    table.add_row(f"perplexity ({EVALUATION}, {run.subset})", *_compared(quality, "{:.2f}"))
    for name in list(run.masks)[1:]:
        other = [run.perplexities["dense"], run.perplexities[name]]
        table.add_row(f"  with the {name} mask instead", *_compared(other, "{:.2f}"))
    servers = [comparison.servers[arm] for arm in arms]
    mib = 2**20
    table.add_row("weights, MiB", *_compared([s.weight_bytes / mib for s in servers], "{:.0f}"))
    table.add_row("server memory, MiB", *_compared([s.rss_bytes / mib for s in servers], "{:.0f}"))
    for level in dict.fromkeys(row.point for row in comparison.rows):
        found = {row.arm: row for row in comparison.rows if row.point == level}
        rows = [found[arm] for arm in arms]
        users = level.concurrency or 1
        at_a_time = f"{users} request{'s' if users > 1 else ''} at a time"
        speeds = [row.tokens_per_s for row in rows]
        table.add_row(f"tokens/s, {at_a_time}", *_compared(speeds, "{:.0f}"))
        waits = [row.ttft_p50_ms or 0.0 for row in rows]
        table.add_row(f"time to first token, ms, {at_a_time}", *_compared(waits, "{:.1f}"))
    run.console.print(table)
    if comparison.other_cpu_share > BUSY_SHARE:
        run.console.print(
            f"[yellow]other processes took up to {comparison.other_cpu_share:.0%} of the CPU: "
            "the speeds are rough; twofour bench serve measures on a quiet machine[/]",
            highlight=False,
            soft_wrap=True,
        )
    run.console.print(f"served with the {served} mask; everything is in {run.out}/", soft_wrap=True)
    run.console.print(f"try it: twofour serve {run.engine('sparse')}", soft_wrap=True)


def _compared(values: list[float], form: str) -> list[str]:
    """The dense arm's value, and the others' with how many times as large they are."""
    dense, *others = values
    return [
        form.format(dense),
        *(f"{form.format(other)} (x {other / dense:.2f})" for other in others),
    ]
