"""`twofour bench masks products`: the dense model, masks of it, and models recovered for one mask.

A *swappable* product is a mask of the unchanged weights, which others can take the place of, a
*single* one a base of its own. Nothing is made here: `twofour mask learn` and `twofour recover` do
that, and `recipes/` has the commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.result_file import ResultRow
from benchmarks.common.table import Table
from benchmarks.masks.texts import GeneralTexts
from benchmarks.masks.workbench import Made, Workbench
from maskgen.format.digests import base_digest
from maskgen.format.json_file import read_json
from maskgen.format.mask import MaskFileError, check_base
from maskgen.format.mask_file import read_mask
from maskgen.recover import FACTS_FILE
from maskgen.texts.text_sets import TextSet

KEY = ("product", "pattern", "values")
"""What names a row."""

SHARED_WORDS = 13
"""Words in a row that count as shared between training and test text, as GPT-3's authors count."""


@dataclass(frozen=True, slots=True)
class Product:
    """Something to measure.

    Attributes:
        kind: `dense`, `swappable` or `single`.
        model: its directory.
        mask: its mask file; None for the dense model.
        facts: what the recovery said of itself; empty for others.
    """

    kind: str
    model: Path
    mask: Path | None
    facts: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str]:
        """The row's name."""
        pattern = "dense" if self.mask is None else str(read_mask(self.mask).pattern)
        return self.kind, pattern, self.facts.get("settings", {}).get("values", "bf16")


def single(model: Path, mask: Path) -> Product:
    """A recovered model and the mask that came with it.

    Raises:
        MaskFileError: the mask belongs to another model, or nothing recovered this one.
    """
    facts = model / FACTS_FILE
    if not facts.is_file():
        raise MaskFileError(f"{model} has no {FACTS_FILE}: it is no model that was recovered")
    return Product("single", model, mask, read_json(facts, MaskFileError))


def run_products(
    bench: Workbench, texts: GeneralTexts, table: Table, products: Sequence[Product]
) -> None:
    """A row for every product."""
    for product in products:

        def measure(product: Product = product) -> ResultRow:
            mask = None if product.mask is None else read_mask(product.mask)
            made = Made(product.model, mask, {})
            if mask is not None:
                check_base(mask, base_digest(product.model), str(product.model))
            facts = product.facts
            return {
                "wikitext2": bench.perplexity(made, texts.wikitext2),
                "c4": bench.perplexity(made, texts.c4),
                "zero_shot": None,
                "tokens_seen": facts.get("tokens"),
                "hours": round(facts["seconds"] / 3600, 2) if facts else None,
                "model_digest": base_digest(product.model),
                "mask_digest": None if mask is None else mask.digest,
                "settings": facts.get("settings"),
                "held_out_curve": facts.get("held_out_curve"),
            }

        if table.measure(product.key, measure):
            row = table[product.key]
            bench.console.print(f"{product.key}: wikitext2 {row['wikitext2']}, c4 {row['c4']}")


def shared_runs(learn: TextSet, test: TextSet, words: int = SHARED_WORDS) -> float:
    """Share of the test text's runs of `words` words that the training text holds as well."""
    known = {run for text in learn.texts for run in _runs(text, words)}
    tested = [run for text in test.texts for run in _runs(text, words)]
    return sum(run in known for run in tested) / max(len(tested), 1)


def _runs(text: str, words: int) -> list[int]:
    found = text.lower().split()
    return [hash(tuple(found[i : i + words])) for i in range(len(found) - words + 1)]
