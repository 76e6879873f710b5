"""The report of a comparison as one HTML file that needs no network: plots are SVG inside it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.common.page import circumstances, number, percent, shortened
from benchmarks.common.result_file import ResultData, ResultRow
from benchmarks.serve.charts import distribution_chart, load_chart, ratio_chart
from benchmarks.serve.paper_table import PAPER_NOTE, paper_table
from loadtests.blocks import Block, problems
from loadtests.samples import RequestSample

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: right }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.verdict { padding: .6rem 1rem; border-left: .4rem solid; white-space: pre-line }
.void { background: #fdecea; border-color: #c62828 }
.doubt { background: #fff8e1; border-color: #f9a825 }
.sound { background: #e8f5e9; border-color: #2e7d32 }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; white-space: pre-wrap }
svg { max-width: 100%; height: auto }
.wide { overflow-x: auto }
"""
_DEFINITIONS = """
Times are taken by the client when a line of the stream arrives; tokens are the server's count. TTFT
is from the send to the first text, TPOT the mean time per token after the first, ITL a gap between
two chunks, E2E from the send to the last chunk. Latencies are medians over the repeats. The ratio
is the geometric mean over paired repeats of tokens/s; its first interval is Student's t over the
repeats, the second a bootstrap of repeats and of requests within them, both 95 %. Beside it are the
ratios of the median TTFT and TPOT, with bootstrap intervals: below 1 is faster.
"""


def html_report(
    result: ResultData,
    blocks: Sequence[Block],
    samples: Mapping[str, Sequence[RequestSample]],
) -> str:
    """The whole page.

    Args:
        result: content of `serve.json`.
        blocks: every single measurement.
        samples: `samples_file` of a block -> its raw samples.
    """
    arms = list(result["arms"])
    title = f"Load test: {', '.join(arms)}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _verdict(result),
        _text(circumstances(result)),
        _code(result["command"]),
        "<h2>Result</h2>",
        *_results(result, arms),
        *_paper(result),
        _text(_DEFINITIONS),
        "<h2>Distributions</h2>",
        *_distributions(blocks, samples, arms),
        "<h2>Every block</h2>",
        _blocks_table(blocks),
        "<h2>What ran</h2>",
        _servers(result),
        _calibration(result),
        *_details("Plan", result["plan"]),
        *_details("Manifests of the engine directories", result["manifests"]),
        *_details("Machine and versions", {k: result[k] for k in ("machine", "versions")}),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return "\n".join(
        ['<!doctype html><html lang="en"><head>', head, "</head><body>", *parts, "</body></html>\n"]
    )


def _verdict(result: ResultData) -> str:
    problems, doubts = result["problems"], result["doubts"]
    if problems:
        kind, title = "void", "Void: measuring ended here, and what it hit has no number below."
    elif doubts:
        kind, title = "doubt", "Disturbed, and measured by force: do not quote these numbers."
    else:
        kind, title = "sound", "No request failed, nothing stalled, and the client kept up."
    told = [*shortened(problems), *shortened(doubts)]
    lines = "\n".join(html.escape(f"- {line}") for line in told)
    return f'<div class="verdict {kind}"><b>{title}</b>\n{lines}</div>'


def _results(result: ResultData, arms: Sequence[str]) -> Iterable[str]:
    rows, reference = result["rows"], result["reference"]
    if not rows:
        yield _text("No load was measured in full.")
    for lengths in dict.fromkeys(row["lengths"] for row in rows):
        chosen = [row for row in rows if row["lengths"] == lengths]
        yield f"<h3>{html.escape(lengths)} tokens in / out</h3>"
        yield _rows_table(chosen, reference)
        yield load_chart(chosen, arms)
        yield ratio_chart(chosen, arms, reference)


def _paper(result: ResultData) -> Iterable[str]:
    found = paper_table(result)
    if found is not None:
        yield "<h3>As in MaskLLM's table</h3>"
        yield _table(*found)
        yield _text(PAPER_NOTE)


def _rows_table(rows: Sequence[ResultRow], reference: str) -> str:
    latencies = [f"{metric}_{p}_ms" for metric in ("ttft", "tpot") for p in ("p50", "p95", "p99")]
    headings = [
        "arm",
        "load",
        "tokens/s",
        *(f"{name[:4].upper()} {name[5:8]}, ms" for name in latencies),
        f"times {reference}",
        "95 %, t",
        "95 %, bootstrap",
        "TTFT ratio",
        "TPOT ratio",
    ]
    return _table(
        headings,
        [
            [
                row["arm"],
                _load_text(row),
                number(row["tokens_per_s"]),
                *(number(row[name]) for name in latencies),
                *_ratio_cells(row, reference),
            ]
            for row in rows
        ],
    )


def _ratio_cells(row: ResultRow, reference: str) -> list[str]:
    if row["arm"] == reference:
        return ["1", "", "", "", ""]
    medians = [
        f"{row[f'{m}_ratio']:.2f} {_interval(row, f'{m}_ratio_low', f'{m}_ratio_high')}"
        if row[f"{m}_ratio"] is not None
        else ""
        for m in ("ttft", "tpot")
    ]
    return [
        f"{row['ratio']:.2f}",
        _interval(row, "ratio_low", "ratio_high"),
        _interval(row, "bootstrap_low", "bootstrap_high"),
        *medians,
    ]


def _interval(row: ResultRow, low: str, high: str) -> str:
    return "" if row[low] is None else f"({row[low]:.2f} to {row[high]:.2f})"


def _load_text(row: ResultRow) -> str:
    if row["rate"] is not None:
        return f"{row['rate']:g}/s"
    return "trace" if row["concurrency"] is None else str(row["concurrency"])


def _distributions(
    blocks: Sequence[Block], samples: Mapping[str, Sequence[RequestSample]], arms: Sequence[str]
) -> Iterable[str]:
    for point in dict.fromkeys(block.point for block in blocks):
        if any(block.point == point and problems([block]) for block in blocks):
            yield _text(f"{point}: void, not drawn.")
            continue
        yield f"<h3>{html.escape(str(point))}</h3>"
        yield distribution_chart(point, blocks, samples, arms)


def _blocks_table(blocks: Sequence[Block]) -> str:
    headings = [
        "arm", "load", "repeat", "requests", "failed", "tokens/s", "TTFT p50, ms", "TPOT p50, ms",
        "client CPU", "client lag p90, ms", "other CPU", "samples",
    ]  # fmt: skip
    return _table(
        headings,
        [
            [
                block.arm,
                str(block.point),
                block.repeat + 1,
                block.summary.requests,
                block.summary.failed,
                *_speed_cells(block),
                percent(block.summary.client_cpu_share, 2),
                number(block.summary.client_lag_ms.get("p90")),
                percent(block.other_cpu_share, 2),
                block.samples_file,
            ]
            for block in blocks
        ],
    )


def _speed_cells(block: Block) -> list[str]:
    if problems([block]):
        return ["void", "void", "void"]
    found = block.summary
    return [
        number(found.tokens_per_s),
        number(found.ttft_ms.get("p50")),
        number(found.tpot_ms.get("p50")),
    ]


def _servers(result: ResultData) -> str:
    rows: list[list[object]] = [
        [
            arm,
            result["arms"][arm]["masks"] or "default",
            f"{server['sparse_layers']} ({percent(server['sparse_share'])})",
            server["isa"],
            f"{server['weight_bytes'] / 2**20:.0f}",
            f"{server['rss_bytes'] / 2**20:.0f}",
        ]
        for arm, server in result["servers"].items()
    ]
    headings = ["arm", "masks", "sparse layers", "instruction set", "weights, MiB", "process, MiB"]
    ours = _table(headings, rows) if rows else ""
    others = [
        [arm, other["url"], ", ".join(other["models"]), json.dumps(other["says"])]
        for arm, other in result["others"].items()
    ]
    return ours + (_table(["arm", "address", "models", "says"], others) if others else "")


def _calibration(result: ResultData) -> str:
    bias = result["calibration"]
    return _text(
        f"The load generator by itself adds {bias['ttft_ms']:.1f} ms to the time to first token "
        f"and {bias['token_p90_ms']:.1f} ms to nine tokens in ten."
    )


def _details(title: str, content: object) -> list[str]:
    if not content:
        return []
    shown = _code(json.dumps(content, indent=1, ensure_ascii=False))
    return [f"<details><summary>{html.escape(title)}</summary>{shown}</details>"]


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _text(text: str) -> str:
    return f"<p>{html.escape(' '.join(text.split()))}</p>"


def _code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
