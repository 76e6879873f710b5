"""The page of docs/results/mask-mix.json."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import markdown_table, number, page, paragraph, percent
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
Many masks in one engine. The masks are synthetic: each group of the base mask is changed with the
given probability, by a seed. A mask beside the base is kept as a patch or as a copy; `switch`
makes it the base instead. Waves of requests that start together, and are shared among the active
masks evenly or in proportion to 1 / rank (Zipf). Generated tokens per second:
"""
_MEMORY = "Memory of the masks beside the base, MiB; copies take the same whatever has changed."
_SWITCH = """
Milliseconds until another mask is the base. Where weights are mapped, the first switch also copies
the pages that it writes to.
"""
_CROSSOVER = """
The share of changed groups at which a patch and a copy are equally fast, interpolated; or which of
them is faster at every share that was measured:
"""


def mix_page(result: ResultData) -> str:
    """Speed and memory of patches and copies, switching, where they cross, the engine's rule."""
    drawn = result["plan"]["shares"]
    synthetic = [
        row | {"drawn": min(drawn, key=lambda share: abs(share - row["changed_share"]))}
        for row in result["rows"]
        if "names" not in row
    ]
    beside = [row for row in synthetic if row["mode"] != "base"]
    parts = [mix_table(beside), *_alone(synthetic)]
    parts += ["## Memory", paragraph(_MEMORY + _base_memory(synthetic)), _memory(beside)]
    if switched := [row for row in beside if row["mode"] == "switch"]:
        parts += ["## Switching the base", paragraph(_SWITCH), _switching(switched)]
    parts += ["## Where they cross", paragraph(_CROSSOVER), _crossovers(result["crossovers"])]
    if rule := result.get("rule"):
        limits = ", ".join(percent(limit, 2) for limit in rule["limits"])
        parts += [
            "## The measured rule",
            paragraph(f"{rule['why'].capitalize()}. Limits of all measurements: {limits}."),
        ]
    if real := [row for row in result["rows"] if "names" in row]:
        parts += ["## Real masks", _real(real)]
    return page("Many masks in one engine", _ABOUT, result, *parts)


def mix_table(rows: Sequence[ResultRow]) -> str:
    """Tokens per second by active masks and share of changed groups: patch / copy (/ switched).

    `drawn` in a row is the share that its masks were drawn with.
    """
    shares = _shares(rows)
    cells: dict[tuple[str, str], dict[int, list[str]]] = {}
    for row in rows:
        rates = cells.setdefault(_label(row), {}).setdefault(shares.index(row["drawn"]), [])
        rates.append(number(row["tokens_per_s"]))
    return markdown_table(
        ["active masks", "requests", *(f"{percent(share, 2)} changed" for share in shares)],
        [
            [*label, *(" / ".join(found.get(i, [])) for i in range(len(shares)))]
            for label, found in cells.items()
        ],
        text=2,
    )


def _alone(rows: Sequence[ResultRow]) -> list[str]:
    found = sorted(row["base_alone_tokens_per_s"] for row in rows)
    middle = number(found[len(found) // 2])
    return [
        paragraph(
            f"Each cell is patch / copy (/ switched). The base alone, in the same cells, gave"
            f" {number(found[0])} to {number(found[-1])}, {middle} in the middle."
        )
    ]


def _label(row: ResultRow) -> tuple[str, str]:
    active, masks = row["active"], row["masks"]
    if row["mix"] == "single":
        return "1", "all use one mask, not the base"
    shown = str(masks) if active == masks else f"{active} of {masks}"
    return shown, "Zipf" if row["mix"] == "zipf" else row["mix"]


def _shares(rows: Sequence[ResultRow]) -> list[float]:
    return sorted({row["drawn"] for row in rows})


def _memory(rows: Sequence[ResultRow]) -> str:
    shares = _shares(rows)
    patches = {(r["masks"], r["drawn"]): r["masks_mib"] for r in rows if r["mode"] == "patch"}
    copies = {r["masks"]: r["masks_mib"] for r in rows if r["mode"] == "copy"}
    return markdown_table(
        ["masks", *(f"patches, {percent(share, 2)}" for share in shares), "copies"],
        [
            [
                str(masks),
                *(number(patches.get((masks, share))) for share in shares),
                number(copies.get(masks)),
            ]
            for masks in sorted({row["masks"] for row in rows})
        ],
    )


def _base_memory(rows: Sequence[ResultRow]) -> str:
    base = [row["resident_mib"] for row in rows if row["mode"] == "base"]
    return f" The process with the base alone has {base[0]:.0f} MiB resident." if base else ""


def _switching(rows: Sequence[ResultRow]) -> str:
    return markdown_table(
        ["changed", "first", "median of the following"],
        [
            [percent(r["drawn"], 2), number(r["first_switch_ms"]), number(r["switch_ms"])]
            for r in rows
        ],
    )


def _crossovers(cells: Sequence[ResultRow]) -> str:
    return markdown_table(
        ["active masks", "requests", "equally fast at"],
        [
            [
                *_label(cell),
                f"always the {cell['faster']}"
                if cell["crossover"] is None
                else percent(cell["crossover"], 2),
            ]
            for cell in cells
        ],
        text=2,
    )


def _real(rows: Sequence[ResultRow]) -> str:
    return markdown_table(
        ["masks", "kept as", "changed", "tokens/s", "MiB"],
        [
            [
                ", ".join(row["names"]),
                row["mode"],
                percent(row["changed_share"], 2),
                number(row["tokens_per_s"]),
                number(row["masks_mib"]),
            ]
            for row in rows
        ],
        text=2,
    )
