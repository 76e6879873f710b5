"""What the modes of `twofour bench masks` are given: texts, masks, settings, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as Shown

from twofour.commands.bench_options import finish
from twofour.commands.option_values import method_settings

if TYPE_CHECKING:
    from benchmarks.common.table import Table, TableSpec
    from benchmarks.masks.texts import Domain, GeneralTexts
    from benchmarks.masks.workbench import Workbench


def open_workbench(
    model: str,
    work: Path,
    console: Console,
    calibration_windows: int,
    calibration_length: int,
    windows: int | None,
    dtype: str,
) -> Workbench:
    """What the modes measure with."""
    from benchmarks.masks.workbench import Workbench
    from maskgen.format.digests import base_digest
    from maskgen.models import model_name, resolve_model

    directory = resolve_model(model)
    owner, digest = work / "base_digest", base_digest(directory)
    if owner.is_file() and owner.read_text(encoding="utf-8").strip() != digest:
        raise ValueError(
            f"{work} holds masks of another model than {model}; give another folder with --work"
        )
    work.mkdir(parents=True, exist_ok=True)
    owner.write_text(f"{digest}\n", encoding="utf-8")
    return Workbench(
        model_name(model),
        directory,
        work,
        console,
        windows=calibration_windows,
        length=calibration_length,
        limit=windows,
        dtype=dtype,
    )


def read_general_texts(learn: list[str] | None, wikitext2: str, c4: str) -> GeneralTexts:
    """The texts to learn on and the two to evaluate on."""
    from benchmarks.masks.texts import GeneralTexts
    from maskgen.texts.text_sets import TextSet, load_texts

    named = learn or ["wikipedia:train"]
    return GeneralTexts(
        TextSet.of("learn", [text for name in named for text in load_texts(name).texts]),
        TextSet.of("wikitext2", load_texts(wikitext2).texts),
        TextSet.of("c4", load_texts(c4).texts),
    )


def open_table(spec: TableSpec, bench: Workbench, inputs: Mapping[str, str], redo: bool) -> Table:
    """The result file, of the same model and windows or an error."""
    from benchmarks.common.table import Earlier, Table

    fixed = {"model": bench.digest(), "number of windows": str(bench.limit or "all")}
    return Table(spec, Earlier.DROP if redo else Earlier.RESUME, {**fixed, **inputs})


def parse_domain(spec: str) -> Domain:
    """NAME=TRAIN,TEST or NAME=TRAIN,TEST,SEEDS."""
    from benchmarks.masks.texts import Domain
    from maskgen.texts.text_sets import load_texts

    name, _, rest = spec.partition("=")
    parts = rest.split(",")
    if not name or len(parts) not in (2, 3) or not (parts[2:] or ["1"])[0].isdigit():
        raise ValueError(f"--domain {spec!r} is not NAME=TRAIN,TEST or NAME=TRAIN,TEST,SEEDS")
    seeds = int(parts[2]) if len(parts) == 3 else 1
    return Domain(name, load_texts(parts[0]), load_texts(parts[1]), seeds)


def parse_masks(specs: Sequence[str]) -> dict[str, Path]:
    """METHOD=FILE of learned methods."""
    from benchmarks.masks.settings import LEARNED

    files: dict[str, Path] = {}
    for spec in specs:
        method, _, file = spec.partition("=")
        if method not in LEARNED or not Path(file).is_file():
            raise ValueError(
                f"--mask {spec!r} is not METHOD=FILE with one of {', '.join(LEARNED)} and a file"
            )
        files[method] = Path(file)
    return files


def parse_base_and_mask(spec: str, model: str) -> tuple[str, Path]:
    """FILE, a mask of `model`, or DIR=FILE, of another base of it: the base and the mask."""
    if "=" not in spec:
        return model, Path(spec)
    directory, file = parse_directory_and_mask(spec)
    return str(directory), file


def parse_directory_and_mask(spec: str) -> tuple[Path, Path]:
    """DIR=FILE of a model and its mask."""
    directory, _, file = spec.rpartition("=")
    if not directory or not Path(directory).is_dir() or not Path(file).is_file():
        raise ValueError(f"{spec!r} is not DIR=FILE with a model directory and a mask file")
    return Path(directory), Path(file)


def parse_overrides(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """METHOD.NAME=VALUE, by method."""
    from benchmarks.masks.settings import LEARNED

    changed: dict[str, dict[str, Any]] = {}
    for spec, value in method_settings(given).items():
        method, dot, name = spec.partition(".")
        if not dot or method not in LEARNED:
            raise ValueError(
                f"--set {spec}={value} is not METHOD.NAME=VALUE with one of {', '.join(LEARNED)}"
            )
        changed.setdefault(method, {})[name] = value
    return changed


def finish_table(table: Table, console: Console, json_: bool) -> None:
    """Show the rows and say where they are."""
    show_rows(console, table.rows())
    finish(table.path, json_)


def show_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a table, digests left out."""
    plain = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
    names = list(dict.fromkeys(name for row in plain for name in row if "digest" not in name))
    shown = Shown(*names)
    for row in plain:
        shown.add_row(*(str(row.get(name, "")) for name in names))
    console.print(shown)
