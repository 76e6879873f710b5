"""`twofour bench values`: perplexity and bytes of engines by type of values and pattern.

Every row is an engine directory that is built and scored by the CPU engine itself, from its prompt
log-probs: what rounding activations to 8 bits costs is in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
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


def run_values(
    model: str,
    masks: Sequence[Path],
    singles: Sequence[tuple[Path, Path]],
    options: Sequence[ValueOptions],
    texts: Mapping[str, TextSet],
    windows: int,
    work: Path,
    table: Table,
    say: Callable[[str], None],
) -> None:
    """A row for the dense model, each mask and each recovered model, by type of values.

    Args:
        model: alias or directory.
        masks: one of each pattern.
        singles: directories that `twofour recover` wrote, each with the mask for it; one of each
            pattern.
        options: types of values.
        texts: `wikitext2` and `c4`.
        windows: of 2,048 tokens, of each text.
        work: folder for the directory that is built; nothing stays there.
        table: takes the rows.
        say: told every row.
    """
    subjects: list[tuple[str, Path | None, str]] = [(model, None, "")]
    subjects += [(model, mask, "") for mask in masks]
    subjects += [(str(directory), mask, " recovered") for directory, mask in singles]
    for directory, mask, kind in subjects:
        pattern = "dense" if mask is None else str(read_mask(mask).pattern)
        for chosen in options:
            minima, head = chosen.has_minima, chosen.head_values
            key = (chosen.values, f"{pattern}{kind}", chosen.block_inputs, minima, head)
            measured = partial(_measure, directory, mask, pattern, chosen, texts, windows, work)
            if table.measure(key, measured):
                row = table[key]
                say(
                    f"{key}: wikitext2 {row['wikitext2']}, c4 {row['c4']}, {row['weights_mib']} MiB"
                )


def run_gguf(
    files: Mapping[str, Path],
    texts: Mapping[str, TextSet],
    windows: int,
    work: Path,
    table: Table,
    say: Callable[[str], None],
) -> None:
    """A row for every GGUF file: what its weights are worth, dequantised to bf16, in our engine.

    Args:
        files: type, such as `q4_0` -> file.
        texts, windows, work, table, say: as of `run_values`.
    """
    for kind, file in files.items():

        def measured(kind: str = kind, file: Path = file) -> ResultRow:
            row = _measure(str(file), None, "dense", ValueOptions(), texts, windows, work)
            return {
                **row,
                "file": file.name,
                "weights_mib": round(file.stat().st_size / 2**20, 1),
                "tokens_per_s": _measured_speed(f"ik-{kind}"),
            }

        key = (kind, "dense", 0, False, "gguf")
        if table.measure(key, measured):
            say(f"{kind}: wikitext2 {table[key]['wikitext2']}, c4 {table[key]['c4']}")


def _measure(
    model: str,
    mask: Path | None,
    pattern: str,
    chosen: ValueOptions,
    texts: Mapping[str, TextSet],
    windows: int,
    work: Path,
) -> ResultRow:
    directory = work / "engine"
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
                    subject.score, joined_tokens(subject.encode, text), windows=windows
                )[0]
                for name, text in texts.items()
            }
    finally:
        shutil.rmtree(directory)
    return {
        **{name: round(value, 4) for name, value in scores.items()},
        "weights_mib": round(manifest.files[ENGINE_WEIGHTS_FILE].bytes / 2**20, 1),
        "tokens_per_s": _speed(pattern, chosen),
        "windows": windows,
        "mask_digest": manifest.masks[0].digest if manifest.masks else None,
        "quantiser": manifest.quantisation.quantiser if manifest.quantisation else None,
    }


def arm_name(pattern: str, values: str) -> str:
    """What the arm of a pattern and type of values is called where speeds are measured."""
    return f"{_KINDS.get(pattern, 'bitmap')}-{values}"


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
