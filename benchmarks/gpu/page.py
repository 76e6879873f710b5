"""The pages of docs/results/gpu-compile.json and gpu.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common.page import bullets, markdown_table, number, page, paragraph, percent
from benchmarks.gpu.arms import DENSE

if TYPE_CHECKING:
    from benchmarks.common.result_file import ResultData, ResultRow

_COMPILED = """
The few-token kernels of the vLLM plugin, compiled by Triton for GPUs that need not be there, as
`few_tokens` launches them: registers and bytes of spilled registers of a thread, shared memory of a
program, and instructions of the machine code. It says that they compile and fit, not how fast they
are.
"""
_INTERPRETED = """
The same kernels in Triton's interpreter, against products in float64: the largest error over what
rounding explains.
"""
_MEASURED = """
2:4 kernels beside dense ones on one GPU: products from captured graphs, in turns, on copies of the
weights that exceed the second-level cache, medians; what converting activations costs is not in
them. Shapes are outputs x inputs, of Llama-3 8B and 70B. At one token a 2:4 layer in bf16 is 9/16
of the dense one's bytes, so 1.78 is the most that it can gain.
"""


def compiled_page(result: ResultData) -> str:
    """What the compiler says, and the interpreter."""
    table = markdown_table(
        ["kernel", "for", "registers", "spills", "shared memory", "warps", "rows", "instructions"],
        [
            [
                r["kernel"],
                r["arch"],
                r["registers"],
                r["spills"],
                r["shared_bytes"],
                r["warps"],
                r["rows"],
                r["instructions"],
            ]
            for r in result["rows"]
        ],
        text=2,
    )
    shown = [table, "## In the interpreter", paragraph(_INTERPRETED)]
    shown.append(_agreement(result["interpreted"]))
    return page("Few-token kernels, compiled without a GPU", _COMPILED, result, *shown)


def gpu_page(result: ResultData) -> str:
    """Speeds by type of values, then accuracy, swapping and learning."""
    parts = [paragraph(_device(result["gpu"]))]
    for values in dict.fromkeys(row["values"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["values"] == values]
        parts += [f"## Products, {values}", _speeds(rows, DENSE[values], result["gpu"])]
    if result["missing"]:
        told = [f"{arm}: {why}" for arm, why in result["missing"].items()]
        parts += ["## Not to be had here", bullets(told)]
    if result["left_out"]:
        parts.append(paragraph(f"No time was left for {', '.join(result['left_out'])}."))
    if tried := result["tried"]:
        parts += ["## Other settings of our kernel", _tried(tried)]
    parts += ["## Against float64", _agreement(result["agreement"])]
    parts += ["## Swapping a mask in place", _facts(result["swap"])]
    parts += ["## MaskLLM", _facts(result["learning"])]
    return page(f"2:4 on a GPU: {result['gpu']['name']}", _MEASURED, result, *parts)


def _device(gpu: dict[str, Any]) -> str:
    return (
        f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB,"
        f" {gpu['processors']} multiprocessors, {gpu['l2_mib']} MiB of second-level cache; a copy"
        f" reads and writes {number(gpu['copy_gbps'])} GB/s."
    )


def _speeds(rows: Sequence[ResultRow], dense: str, gpu: dict[str, Any]) -> str:
    """Milliseconds of the dense arm and its share of bandwidth; of others, times the dense arm."""
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["arm"] != dense))
    found = {(row["n"], row["k"], row["tokens"], row["arm"]): row for row in rows}
    lines = []
    for n, k, tokens in dict.fromkeys((row["n"], row["k"], row["tokens"]) for row in rows):
        base = found.get((n, k, tokens, dense))
        line = [f"{n}x{k}", str(tokens), "" if base is None else f"{base['ms']:.4f}"]
        line.append(_share(base, gpu))
        for arm in arms:
            row = found.get((n, k, tokens, arm))
            line += ["" if row is None or base is None else f"{base['ms'] / row['ms']:.2f}"]
            line += [_share(row, gpu)]
        lines.append(line)
    head = ["shape", "tokens", f"{dense}, ms", "of bandwidth"]
    for arm in arms:
        head += [f"x {arm}", "of bandwidth"]
    return markdown_table(head, lines)


def _share(row: ResultRow | None, gpu: dict[str, Any]) -> str:
    return "" if row is None else percent(row["gbps"] / gpu["copy_gbps"], 2)


def _tried(tried: Sequence[dict[str, Any]]) -> str:
    keys = ("n", "k", "tokens", "rows", "warps", "stages")
    return markdown_table(
        ["shape", "tokens", "rows", "warps", "stages", "ms"],
        [
            [f"{r['n']}x{r['k']}", *(str(r[key]) for key in keys[2:]), f"{r['ms']:.4f}"]
            for r in tried
        ],
    )


def _agreement(rows: Sequence[dict[str, Any]]) -> str:
    return markdown_table(
        ["kernel", "shape", "tokens", "error over tolerance"],
        [
            [r["kernel"], f"{r['n']}x{r['k']}", str(r["tokens"]), r["error"] or number(r["worst"])]
            for r in rows
        ],
        text=3,
    )


def _facts(found: dict[str, Any]) -> str:
    return bullets(
        f"{name.replace('_', ' ')}: {number(x, 4) if isinstance(x, float) else x}"
        for name, x in found.items()
    )
