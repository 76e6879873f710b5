"""Zero-shot accuracy of products, as the CPU engine serves them, and how far it is from dense."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.products import Product
from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.quantisation.options import ValueOptions
from evaluation.engine_subject import engine_subject
from evaluation.lm_tasks import run_tasks
from maskgen.format.digests import base_digest
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR


def ask_products(
    table: Table, products: Sequence[Product], tasks: Sequence[str], limit: int | None
) -> None:
    """Add the accuracies of tasks to the rows that have none yet.

    Args:
        tasks: `NAME=FILE` of `twofour eval --tasks`.
        limit: only the first questions of every task.

    Raises:
        ValueError: a row is of another model or mask than the product now.
    """
    for product in products:
        row = table[product.key]
        if tasks and row["zero_shot"] is None:
            mask = None if product.mask is None else read_mask(product.mask).digest
            if (row["model_digest"], row["mask_digest"]) != (base_digest(product.model), mask):
                raise ValueError(
                    f"the row {' '.join(product.key)} is of another model or mask than the one that"
                    " is given; measure it anew with --redo"
                )
            table.put([{**row, "zero_shot": _ask(product, tasks, limit)}])


def _ask(product: Product, tasks: Sequence[str], limit: int | None) -> dict[str, Any]:
    """`acc` of every task, their mean, the values it was served in, and every answer."""
    values = _values(product)
    answers: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory(prefix="twofour-bench-") as folder:
        out = Path(folder) / "engine"
        masks = {} if product.mask is None else {"product": product.mask}
        sealed = product.mask is not None
        build(BuildRequest(product.model, "product", masks, out, sealed=sealed, values=values))
        with engine_subject(out, None) as subject:
            run_tasks(subject, tasks, limit=limit, answers=answers)
    accuracies = {name: fmean(found) for name, found in answers.items()}
    return {
        "mean": round(fmean(accuracies.values()), 4),
        **{name: round(accuracy, 4) for name, accuracy in accuracies.items()},
        "questions": {name: len(found) for name, found in answers.items()},
        "values": values.values,
        "answers": {name: _packed(found) for name, found in answers.items()},
    }


def _values(product: Product) -> ValueOptions:
    """Those of the product; int8 for masks that the engine does not run in bf16."""
    settings = product.facts.get("settings") or {}
    values = settings.get("values", "bf16")
    if values != "bf16":
        minima = settings["minima"] if values == "int4" else None
        return ValueOptions(values=values, block=settings["block"], minima=minima)
    wide = product.mask is not None and read_mask(product.mask).pattern != TWO_FOUR
    return ValueOptions(values="int8" if wide else "bf16")


def accuracy_difference(row: ResultRow, dense: ResultRow) -> tuple[float, float]:
    """How much better than dense a row answers, question by question, and its standard error.

    The mean of the tasks' own differences; their errors are independent.
    """
    ours, theirs = row["zero_shot"], dense["zero_shot"]
    means, errors = [], []
    for name, count in ours["questions"].items():
        pairs = zip(
            _unpacked(ours["answers"][name], count),
            _unpacked(theirs["answers"][name], count),
            strict=True,
        )
        differences = [float(own) - float(other) for own, other in pairs]
        means.append(fmean(differences))
        errors.append(stdev(differences) / math.sqrt(count) if count > 1 else math.nan)
    return fmean(means), math.sqrt(sum(error**2 for error in errors)) / len(errors)


def _packed(answers: Sequence[bool]) -> str:
    """Hexadecimal digits of four answers each, the first in the highest bit."""
    bits = "".join("1" if answer else "0" for answer in answers)
    bits += "0" * (-len(bits) % 4)
    return "".join(f"{int(bits[i : i + 4], 2):x}" for i in range(0, len(bits), 4))


def _unpacked(digits: str, count: int) -> list[bool]:
    return [bit == "1" for digit in digits for bit in f"{int(digit, 16):04b}"][:count]
