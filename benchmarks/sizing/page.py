"""The page of docs/results/sizing.json."""

from __future__ import annotations

from benchmarks.common.page import markdown_table, number, page, paragraph, percent
from benchmarks.common.result_file import ResultData

_ABOUT = """
What one replica of the server sustains, and what several would. A replica ran on one core and its
client on another. Step costs were fitted to requests that do not queue (single prompts, batches
that decode together), and a simulation of steps and queue (`benchmarks/sizing/replica_model.py`)
then predicted the time to first token at two loads that the fit had not seen, for the same
arrivals.
"""


def sizing_page(result: ResultData) -> str:
    """The check of the model, then what it says of replicas."""
    return page("Sizing replicas", _ABOUT, result, *_parts(result))


def _parts(result: ResultData) -> list[str]:
    costs, lengths = result["costs"], result["lengths"]
    fitted = (
        f"A step takes {number(1e3 * costs['fixed'])} ms, {number(1e3 * costs['per_sequence'])} ms"
        f" for each sequence that decodes, and {number(1e3 * costs['per_prompt_token'])} ms for"
        f" each token of a prompt; a request {number(1e3 * costs['outside'])} ms outside of steps."
    )
    shape = (
        f"Poisson arrivals; prompts of {lengths['prompt'][0]} to {lengths['prompt'][1]} tokens,"
        f" answers of {lengths['output'][0]} to {lengths['output'][1]}, uniform."
    )
    limit = f"""
        The highest rate at which 95 % of requests have their first token within
        {number(result["limit_ms"])} ms, {number(result["limit_ms"] / result["alone_ms"])} times
        what it takes alone. Each request goes to the replica with the fewest in flight. Simulated
        from one replica's measured steps: several were not measured. A core-hour is one core of
        this machine for an hour.
    """
    guess = ("predicted", "off")
    return [
        paragraph(f"{fitted} {shape}"),
        "## Predicted and measured time to first token",
        markdown_table(
            ["requests/s", "requests", "p50, ms", *guess, "p95, ms", *guess],
            [
                [
                    number(r["rate"]),
                    r["requests"],
                    *(
                        cell
                        for name in ("p50", "p95")
                        for cell in (
                            number(r[f"{name}_ms"]),
                            number(r[f"{name}_predicted_ms"]),
                            percent(r[f"{name}_error"], 2),
                        )
                    ),
                ]
                for r in result["rows"]
            ],
        ),
        "## Replicas",
        paragraph(limit),
        sizing_table(result),
    ]


def sizing_table(result: ResultData) -> str:
    """What N replicas sustain and cost."""
    return markdown_table(
        ["replicas", "requests/s", "tokens/s", "cores", "memory, MiB", "core-hours / M tokens"],
        [
            [
                str(r["replicas"]),
                number(r["rate"]),
                number(r["tokens_per_s"]),
                r["cores"],
                number(r["memory_mib"]),
                number(r["core_hours_per_million_tokens"]),
            ]
            for r in result["sizing"]
        ],
    )
