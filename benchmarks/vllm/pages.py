"""The pages of what `twofour bench vllm` measures."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import markdown_table, number, page, paragraph, percent
from benchmarks.common.result_file import ResultData, ResultRow

_SPEED = """
Whole batches of greedy requests through vLLM on the CPU, generated tokens per second. `sparse` and
`own-dense` run twofour's kernels through the plugin, `dense` is vLLM's own product in bf16,
`dense-fp32` the same in float32.
"""
_SUMMARY = """
What sparsity gains is `sparse` over `own-dense`; whether the plugin is of use is the best sparse
arm over the best dense one. Each arm counts at its best mode and binding.
"""
_AGREEMENT = """
vLLM continues texts greedily in bf16; the reference engine, in float32, reads vLLM's own text and
says at every step what it would have chosen. A step breaks the rule if the two differ although the
reference's margin between its first two choices is at least the one in the table; at most 1 % may.
"""


def vllm_speed_page(result: ResultData) -> str:
    """Tokens per second, ratios, what the operator itself costs, and memory."""
    calls = ", ".join(f"`{name}` {us:.1f}" for name, us in result["operator_call_us"].items())
    return page(
        "Speed through vLLM",
        _SPEED,
        result,
        vllm_speed_table(result["rows"]),
        paragraph(_SUMMARY),
        summary_table(result["summary"]),
        paragraph(f"One call with next to no work, in microseconds: {calls}."),
        "## Memory of the worker",
        _memory(result["rows"]),
        "## Parts",
        _parts(result["parts"]),
    )


def vllm_speed_table(rows: Sequence[ResultRow]) -> str:
    """Tokens per second by arm, mode, binding and batch."""
    batches = sorted({row["batch"] for row in rows})
    found: dict[tuple[str, ...], dict[int, ResultRow]] = {}
    for row in rows:
        key = (row["arm"], row["mode"], row["binding"])
        found.setdefault(key, {})[row["batch"]] = row
    return markdown_table(
        ["arm", "mode", "binding", "generated", *(f"batch {batch}" for batch in batches)],
        [
            [
                *key,
                next(iter(by_batch.values()))["output_tokens"],
                *(number(by_batch[b]["tokens_per_s"]) if b in by_batch else "" for b in batches),
            ]
            for key, by_batch in found.items()
        ],
        text=3,
    )


def summary_table(cells: Sequence[ResultRow]) -> str:
    """Ratios by batch."""
    return markdown_table(
        ["batch", "sparse / best dense", "sparse / own-dense", "sparse / vLLM's own dense"],
        [
            [
                str(cell["batch"]),
                number(cell.get("usefulness")),
                number(cell.get("sparsity")),
                number(_over_vllm(cell["best_tokens_per_s"])),
            ]
            for cell in cells
        ],
    )


def _over_vllm(best: dict[str, float]) -> float | None:
    dense = [rate for arm, rate in best.items() if arm not in ("sparse", "own-dense")]
    return best["sparse"] / max(dense) if "sparse" in best and dense else None


def _memory(rows: Sequence[ResultRow]) -> str:
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (row["arm"], row["mode"])
        found[key] = max(found.get(key, 0.0), row["worker_rss_mib"])
    return markdown_table(
        ["arm", "mode", "resident, MiB"],
        [[*key, f"{value:,.0f}"] for key, value in found.items()],
        text=2,
    )


def _parts(parts: Sequence[ResultRow]) -> str:
    return markdown_table(
        ["date", "other CPU", "mask"],
        [
            [
                part["date"][:10],
                percent(part["other_cpu_share"], 2),
                f"`{part['mask_digest'][:16]}`",
            ]
            for part in parts
        ],
    )


def agreement_page(result: ResultData) -> str:
    """One comparison."""
    return page("vLLM against the reference", _AGREEMENT, result, agreement_table(result["rows"]))


def agreement_table(rows: Sequence[ResultRow]) -> str:
    """Shares and errors of every row."""
    return markdown_table(
        ["mask, mode", "steps", "margin", "differ", "break the rule", "largest", "log-prob error"],
        [
            [
                f"`{row['mask']}`, {row['mode']}",
                row["steps"],
                number(row["margin"], 2),
                percent(row["differ_share"], 2),
                percent(row["broken_share"], 1),
                number(row["largest_margin_where_different"], 2),
                number(row["mean_logprob_error"], 2),
            ]
            for row in rows
        ],
    )
