"""`twofour bench values`: perplexity and bytes of engines by type of values and pattern.

Every row is an engine directory that is built and scored by the CPU engine itself, from its prompt
log-probs: what rounding activations to 8 bits costs is in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.common.result_file import RESULTS, ResultRow, read_result
from benchmarks.common.table import Table
from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.directory.manifest import ENGINE_WEIGHTS_FILE
from engines.quantisation.options import ValueOptions
from evaluation.engine_subject import engine_subject
from evaluation.perplexity import joined_tokens, measure_perplexity
from maskgen.format.mask_file import read_mask
from maskgen.models import model_name, resolve_model
from maskgen.texts.text_sets import TextSet

KEY = ("values", "pattern", "block", "minima", "head")
"""What names a row."""

SPEED_RESULT = "bench-lowbit"
"""Where speeds of the same engines are, by `twofour bench engine speed --result`."""

_KINDS = {"dense": "dense", "2:4": "sparse"}


@dataclass(frozen=True, slots=True)
class ValuesBench:
    """Where rows come from and go to.

    Attributes:
        texts: `wikitext2` and `c4`.
        windows: of 2,048 tokens, of each text.
        work: folder for the directory that is built; nothing stays there.
        table: takes the rows.
        say: told every row.
    """

    texts: Mapping[str, TextSet]
    windows: int
    work: Path
    table: Table
    say: Callable[[str], None]

    def row(self, key: tuple[object, ...], measure: Callable[[], ResultRow]) -> None:
        """Measure a row, unless it is there."""
        if self.table.measure(key, measure):
            row = self.table[key]
            size = row["weights_mib"]
            self.say(f"{key}: wikitext2 {row['wikitext2']}, c4 {row['c4']}, {size} MiB")


def run_values(
    bench: ValuesBench,
    model: str,
    masks: Sequence[tuple[str, Path]],
    singles: Sequence[tuple[Path, Path]],
    options: Sequence[ValueOptions],
) -> None:
    """A row for the dense model, each mask and each recovered model, by type of values.

    Args:
        bench: texts and table.
        model: alias or directory.
        masks: one of each pattern, each with the alias or directory of its base.
        singles: directories that `twofour recover` wrote, each with the mask for it; one of each
            pattern.
        options: types of values.
    """
    subjects: list[tuple[str, Path | None, str]] = [(model, None, "")]
    subjects += [(base, mask, "") for base, mask in masks]
    subjects += [(str(directory), mask, " recovered") for directory, mask in singles]
    for directory, mask, kind in subjects:
        pattern = "dense" if mask is None else str(read_mask(mask).pattern)
        for chosen in options:
            minima, head = chosen.has_minima, chosen.head_values
            key = (chosen.values, f"{pattern}{kind}", chosen.block_inputs, minima, head)
            bench.row(key, partial(_measure, bench, directory, mask, pattern, chosen))


def run_gguf(bench: ValuesBench, files: Mapping[str, Path]) -> None:
    """A row for every GGUF file: what its weights are worth, dequantised to bf16, in our engine.

    Args:
        bench: texts and table.
        files: type, such as `q4_0` -> file.
    """
    for kind, file in files.items():

        def measured(kind: str = kind, file: Path = file) -> ResultRow:
            return {
                **_measure(bench, str(file), None, "dense", ValueOptions()),
                "file": file.name,
                "weights_mib": round(file.stat().st_size / 2**20, 1),
                "tokens_per_s": _measured_speed(f"ik-{kind}"),
            }

        bench.row((kind, "dense", 0, False, "gguf"), measured)


def _measure(
    bench: ValuesBench, model: str, mask: Path | None, pattern: str, chosen: ValueOptions
) -> ResultRow:
    directory = bench.work / "engine"
    shutil.rmtree(directory, ignore_errors=True)
    masks = {} if mask is None else {"mask": mask}
    request = BuildRequest(
        resolve_model(model), model_name(model), masks, directory, sealed=True, values=chosen
    )
    manifest = build(request)
    try:
        with engine_subject(directory, None) as subject:
            scores = {
                name: measure_perplexity(
                    subject.score, joined_tokens(subject.encode, text), windows=bench.windows
                )[0]
                for name, text in bench.texts.items()
            }
    finally:
        shutil.rmtree(directory)
    return {
        **{name: round(value, 4) for name, value in scores.items()},
        "weights_mib": round(manifest.files[ENGINE_WEIGHTS_FILE].bytes / 2**20, 1),
        "tokens_per_s": _speed(pattern, chosen),
        "windows": bench.windows,
        "mask_digest": manifest.masks[0].digest if manifest.masks else None,
        "quantiser": manifest.quantisation.quantiser if manifest.quantisation else None,
    }


def arm_name(pattern: str, values: str) -> str:
    """What the arm of a pattern and type of values is called where speeds are measured."""
    return f"{_KINDS.get(pattern, 'bitmap')}-{values}"


def with_present_speeds(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows that have a speed with the one that bench-lowbit.json gives now, if it gives one."""
    found = []
    for row in rows:
        pattern = str(row["pattern"]).partition(" ")[0]
        arm = f"ik-{row['values']}" if row.get("file") else arm_name(pattern, row["values"])
        speed = None if row["tokens_per_s"] is None else _measured_speed(arm)
        found.append({**row, "tokens_per_s": speed or row["tokens_per_s"]})
    return found


def _speed(pattern: str, chosen: ValueOptions) -> float | None:
    """Tokens per second of one request, 128/128, if a directory made by default was measured."""
    plain = ValueOptions(values=chosen.values)
    same = (chosen.block_inputs, chosen.has_minima, chosen.head_values) == (
        plain.block_inputs,
        plain.has_minima,
        plain.head_values,
    )
    return _measured_speed(arm_name(pattern, chosen.values)) if same else None


def _measured_speed(arm: str) -> float | None:
    path = RESULTS / f"{SPEED_RESULT}.json"
    for row in read_result(path)["rows"] if path.is_file() else ():
        cell = (row["arm"], row["prompt_tokens"], row["output_tokens"], row["concurrency"])
        if cell == (arm, 128, 128, 1):
            return float(row["tokens_per_s"])
    return None
