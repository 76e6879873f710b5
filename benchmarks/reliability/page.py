"""The page of docs/results/reliability.json."""

from __future__ import annotations

from benchmarks.common.page import bullets, markdown_table, number, page, paragraph
from benchmarks.common.result_file import ResultData

_ABOUT = """
Real server processes on one engine directory, under each fault in turn. A request is answered when
all of its tokens came and are those that the server gives it alone; refused when it got the error
that the documentation promises; left when its client went away on purpose; else lost. Silent
clients and damaged masks are to be refused. After each part every gauge must return to 0; memory is
that after the first part, the warm-up, and at the end.
"""


def reliability_page(result: ResultData) -> str:
    """Requests by fault and outcome, memory, and what went wrong."""
    problems = [
        f"{row['fault']}: {problem}" for row in result["rows"] for problem in row["problems"]
    ]
    return page(
        f"Reliability of the server: {result['model']}",
        _ABOUT,
        result,
        markdown_table(
            ["fault", "sent", "answered", "refused", "left", "lost", "memory, MiB", "at the end"],
            [
                [
                    row["fault"],
                    *(row[name] for name in ("sent", "answered", "refused", "left", "lost")),
                    number(row["rss_mib_warm"]),
                    number(row["rss_mib_end"]),
                ]
                for row in result["rows"]
            ],
        ),
        bullets(problems) if problems else paragraph("Nothing else went wrong."),
        *_broken(result),
    )


def _broken(result: ResultData) -> list[str]:
    cut = sum(row["broken"] for row in result["rows"])
    if not cut:
        return []
    return [
        paragraph(
            f"SIGKILL cut {cut} streams. None of them looked whole to its client, and each was"
            " answered on a second try, after the restart."
        )
    ]
