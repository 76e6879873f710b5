"""The pages of what `twofour bench engine` and `twofour bench quality` measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.common.page import markdown_table, number, page, paragraph, percent
from benchmarks.common.result_file import ResultData, ResultRow

_SPEED = """
Generated tokens per second of whole waves of requests that start together, prompts included:
random prompts of equal length, greedy, without the prefix cache. In brackets: how many times as
fast the sparse arm was in the run that the two shared (the median of the ratios wave by wave).
`sparse` and `dense` are this engine, bf16 weights; `vllm-` and `llama.cpp-` arms run the dense
model.
"""
_LOWBIT_SPEED = """
Generated tokens per second of whole waves of requests that start together, prompts included:
random prompts of equal length, greedy, without the prefix cache. Arms are named by pattern and type
of values: `sparse` is 2:4, `bitmap` 16:32; int8 and int4 arms have an int8 head. In brackets: how
many times as fast `sparse-int4` was in the run that the two shared (the median of the ratios wave
by wave). `llama.cpp-` and `ik-` (ik_llama.cpp, weights repacked) arms run the dense model.
"""
_SPLIT = """
Where a decode step of one sequence spends its time. Whole steps are timed, and steps with a part
left out: without the head, and without context. The weights' share is their bytes at the read
bandwidth that was measured in turns with the steps; what is left is called overhead. Times are
medians in milliseconds.
"""
_QUALITY = """
Perplexity on Wikitext-2 (raw test file) of every arm that is timed. `sparse` and `dense` are
scored by the engine itself, from its prompt log-probs; `torch-` arms are the same weights in torch
in fp32, and must agree. `llama.cpp-` arms are the dequantised weights of the GGUF file in torch in
fp32: llama.cpp also rounds activations to 8 bits, which this does not show.
"""


def speed_page(result: ResultData) -> str:
    """Tokens per second by cell and arm, prompts, and memory."""
    return _speed_page("Speed of the CPU engine", _SPEED, result)


def lowbit_speed_page(result: ResultData) -> str:
    """The same of arms of several types of values."""
    return _speed_page("Speed by type of values", _LOWBIT_SPEED, result)


def _speed_page(title: str, about: str, result: ResultData) -> str:
    rows = result["rows"]
    return page(
        f"{title}: {result['model']} ({result['machine_class']})",
        about,
        result,
        "## Generated tokens per second",
        speed_table(rows),
        "## Prompt tokens per second",
        _by_cell(rows, lambda row: number(row["prompt_tokens_per_s"])),
        "## Memory",
        paragraph(
            "Weights, the resident memory of the arm's processes after one full-length request, and"
            " the most that loading took, in MiB."
        ),
        _memory(rows),
    )


def speed_table(rows: Sequence[ResultRow]) -> str:
    """Generated tokens per second, and the sparse arm's lead over each arm."""
    return _by_cell(rows, _rate)


def _rate(row: ResultRow) -> str:
    rate = number(row["tokens_per_s"])
    return rate if row.get("sparse_ratio") is None else f"{rate} ({row['sparse_ratio']:.2f})"


def _by_cell(rows: Sequence[ResultRow], show: Callable[[ResultRow], str]) -> str:
    arms = list(dict.fromkeys(row["arm"] for row in _ordered(rows)))
    names = ("prompt_tokens", "output_tokens", "concurrency")
    found = {(*(row[name] for name in names), row["arm"]): show(row) for row in rows}
    cells = sorted({tuple(row[name] for name in names) for row in rows})
    return markdown_table(
        ["prompt / output", "requests", *arms],
        [
            [f"{cell[0]} / {cell[1]}", cell[2], *(found.get((*cell, arm), "") for arm in arms)]
            for cell in cells
        ],
    )


def _memory(rows: Sequence[ResultRow]) -> str:
    last = {row["arm"]: row for row in _ordered(rows)}
    return markdown_table(
        ["arm", "weights", "resident", "peak while loading"],
        [
            [arm, _mib(row["weights_mib"]), _mib(row["rss_mib"]), _mib(row.get("load_peak_mib"))]
            for arm, row in last.items()
        ],
    )


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _ordered(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Our arms first."""
    ours = ("sparse", "bitmap", "dense")
    order = {kind: place for place, kind in enumerate(ours)}
    return sorted(rows, key=lambda row: order.get(row["arm"].partition("-")[0], len(ours)))


def split_page(result: ResultData) -> str:
    """The parts of a step, by arm and context."""
    return page("Where a decode step spends its time", _SPLIT, result, split_table(result["rows"]))


def split_table(rows: Sequence[ResultRow]) -> str:
    """Milliseconds of a step and of its parts."""
    parts = ("step", "weights", "head", "attention", "overhead")
    headings = ["arm, context", *parts, "bytes at bandwidth", "step / that"]
    return markdown_table(
        headings,
        [
            [
                f"{row['arm']}, {row['context']}",
                *(number(row[f"{part}_ms"]) for part in parts),
                number(row["ideal_ms"]),
                number(row["ratio"]),
            ]
            for row in rows
        ],
    )


def quality_page(result: ResultData) -> str:
    """Perplexity by arm."""
    return page("Quality of what is timed", _QUALITY, result, quality_table(result["rows"]))


def quality_table(rows: Sequence[ResultRow]) -> str:
    """Perplexity by arm, and how far it is from torch's where both are there."""
    by_arm = {row["arm"]: row["perplexity"] for row in rows}
    return markdown_table(
        ["arm", "perplexity", "from torch's", "windows", "computed in"],
        [
            [
                row["arm"],
                f"{row['perplexity']:.3f}",
                _distance(row["perplexity"], by_arm.get(f"torch-{row['arm']}")),
                f"{row['windows']} of {row['windows_available']}",
                row["dtype"],
            ]
            for row in rows
        ],
    )


def _distance(value: float, reference: float | None) -> str:
    return "" if reference is None else percent(abs(value / reference - 1), 1)
