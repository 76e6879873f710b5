"""The form in which packed weights hold their values, as a directory's manifest says."""

from __future__ import annotations

from dataclasses import dataclass

from engines.directory.manifest import QuantisationRecord
from engines.native import lowbit
from engines.native.layout import VERSION, Layout


@dataclass(frozen=True, slots=True)
class ValueForm:
    """What all packed matrices of one kind have in common.

    Attributes:
        values: `bf16`, `int8` or `int4`.
        block: inputs of a row that share a scale; 0 for bf16.
        minima: whether blocks have minima of their own.
    """

    values: str = "bf16"
    block: int = 0
    minima: bool = False


@dataclass(frozen=True, slots=True)
class ValueForms:
    """Of the linear layers, and of the tables: output head and embedding."""

    linears: ValueForm
    tables: ValueForm


BF16_FORMS = ValueForms(ValueForm(), ValueForm())


def forms_of(quantisation: QuantisationRecord | None) -> ValueForms:
    """What a directory holds; None where all is bf16."""
    if quantisation is None:
        return BF16_FORMS
    q = quantisation
    return ValueForms(
        ValueForm(q.values, q.block, q.minima), ValueForm(q.head, q.head_block, minima=False)
    )


def version_of(layout: Layout) -> int:
    """The version of a layout that this twofour runs."""
    return lowbit.VERSION if layout.lowbit else VERSION
