"""`twofour bench masks structure`: smaller dense models of the same width, by method.

At a ratio and a number of heads all methods get the same width. Runs and structures are kept in the
work folder, and an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.texts import GeneralTexts
from benchmarks.masks.workbench import Made, Workbench
from maskgen.format.json_file import read_json, write_json
from maskgen.format.model_directory import read_model_config
from maskgen.recover import recover
from maskgen.recovery.config import RecoverConfig
from maskgen.recovery.request import RecoverRequest
from maskgen.structure.config import GateConfig, structure_config
from maskgen.structure.file import read_structure, write_structure
from maskgen.structure.learn import StructureRequest, learn_structure
from maskgen.structure.removal import apply_structure
from maskgen.structure.width import LayerShape

KEY = ("method", "ratio", "key_value_heads", "recovered")
"""What names a row; the dense model's ratio is 1."""

METHODS = ("maskprune", "grasp", "flap", "magnitude")
"""In the order of their rows."""
RATIOS = (0.8, 0.65, 0.5)
RECOVERED = ("maskprune", "magnitude")
"""Methods whose models are recovered as well: the one that learns most, and the simplest."""


def run_structures(
    bench: Workbench,
    texts: GeneralTexts,
    table: Table,
    ratios: Sequence[float],
    heads: Sequence[int],
    methods: Collection[str],
    settings: Mapping[str, Any],
    recovery: RecoverConfig | None = None,
) -> None:
    """A row for every method, ratio and number of heads, after the dense model's.

    Args:
        heads: key-value heads that every layer keeps; all of them, if empty.
        settings: of the methods that learn.
        recovery: how models of `RECOVERED` are recovered, each a row more; None for not at all.
    """
    full = LayerShape.of(read_model_config(bench.directory)).full.key_value_heads
    _row(bench, texts, table, ("dense", 1.0, full, False), bench.dense)
    for ratio in ratios:
        for kept in heads or (full,):
            for method in METHODS:
                if method in methods:
                    make = partial(_made, bench, texts, method, ratio, kept, settings)
                    _row(bench, texts, table, (method, ratio, kept, False), make)
                if method in methods and method in RECOVERED and recovery is not None:
                    again = partial(_recovered, bench, texts, make, recovery)
                    _row(bench, texts, table, (method, ratio, kept, True), again)


def _row(
    bench: Workbench,
    texts: GeneralTexts,
    table: Table,
    key: tuple[Any, ...],
    make: Callable[[], Made],
) -> None:
    def measure() -> ResultRow:
        made = make()
        config = read_model_config(made.model)
        shape = LayerShape.of(config)
        return {
            "wikitext2": bench.perplexity(made, texts.wikitext2),
            "c4": bench.perplexity(made, texts.c4),
            "intermediate_size": shape.full.intermediate,
            "parameters": shape.layers * shape.weights(shape.full),
            "tokens_per_s": None,
            **made.row,
        }

    if table.measure(key, measure):
        row = table[key]
        bench.console.print(f"{key}: wikitext2 {row['wikitext2']}, c4 {row['c4']}")


def structure_file(bench: Workbench, method: str, ratio: float, heads: int) -> Path:
    """Where a structure is kept; the smaller model lies beside it, under the same name."""
    return bench.folder / f"{method}-{ratio}-{heads}.safetensors"


def _made(
    bench: Workbench,
    texts: GeneralTexts,
    method: str,
    ratio: float,
    heads: int,
    settings: Mapping[str, Any],
) -> Made:
    """A smaller model, kept in the work folder."""
    path = structure_file(bench, method, ratio, heads)
    label = path.stem
    facts, model = path.with_suffix(".json"), path.with_suffix("")
    if not facts.is_file():
        bench.console.print(f"{label}: choosing units")
        own = settings if isinstance(structure_config(method, {}), GateConfig) else {}
        request = StructureRequest(
            method,
            structure_config(method, own),
            ratio,
            key_value_heads=heads,
            windows=bench.windows,
            length=bench.length,
            dtype=bench.dtype,
            folder=path.with_suffix(".run"),
            resume=True,
        )
        result = learn_structure(bench.directory, texts.learn, request, console=bench.console)
        bench.folder.mkdir(parents=True, exist_ok=True)
        write_structure(path, result.structure)
        row = {
            "share": round(result.share, 4),
            "tokens_seen": result.tokens,
            "seconds": round(result.seconds, 1),
            "structure_digest": result.structure.digest,
            "settings": dict(own),
        }
        write_json(facts, row)
    if not model.is_dir():
        apply_structure(bench.directory, read_structure(path), model)
    return Made(model, None, read_json(facts, ValueError))


def _recovered(
    bench: Workbench, texts: GeneralTexts, make: Callable[[], Made], config: RecoverConfig
) -> Made:
    """A smaller model, its weights tuned against the dense one; kept in the work folder."""
    made = make()
    folder = made.model.with_name(f"{made.model.name}-recovered")
    facts = folder.with_suffix(f"{folder.suffix}.json")
    if not facts.is_file():
        bench.console.print(f"{folder.name}: recovering")
        request = RecoverRequest(
            config,
            folder.with_suffix(f"{folder.suffix}.run"),
            folder,
            resume=True,
            dtype=bench.dtype,
            teacher=bench.directory,
        )
        result = recover(made.model, None, texts.learn, request, bench.console)
        row = {
            **made.row,
            "tokens_seen": made.row["tokens_seen"] + result.tokens,
            "seconds": round(made.row["seconds"] + result.seconds, 1),
            "recovery": config.model_dump(mode="json", exclude_unset=True),
        }
        write_json(facts, row)
    kept = read_json(facts, ValueError)
    asked = config.model_dump(mode="json", exclude_unset=True)
    if (kept["recovery"], kept["structure_digest"]) != (asked, made.row["structure_digest"]):
        raise ValueError(
            f"{folder} was recovered with {kept['recovery']} from another structure or with other"
            f" settings than {asked}; delete it, or give another --work"
        )
    return Made(folder, None, kept)
