"""guidellm: a short benchmark over completions and over chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.answers import read_answer
from tests.clients.conftest import Client, RunProgram

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("guidellm", "guidellm")
REQUESTS, PROMPT, OUTPUT = 4, 32, 12


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_benchmark(run_program: RunProgram, engine: Path, tmp_path: Path, route: str) -> None:
    report = tmp_path / "report.json"
    found = run_program(
        lambda url: [
            *("run", "--disable-console-interactive"),
            *("--backend", f"kind=openai_http,target={url},request_format={route}"),
            *("--profile", json.dumps({"kind": "concurrent", "streams": 2})),
            *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={OUTPUT}"),
            *("--tokenizer", f"kind=huggingface_auto,model={engine}"),
            *("--constraint", f"kind=max_requests,count={REQUESTS}"),
            *("--output", f"kind=json,path={report}"),
        ]
    )
    metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    assert (totals["successful"], totals["errored"]) == (REQUESTS, 0)
    assert metrics["output_token_count"]["successful"]["mean"] == OUTPUT
    told = [read_answer(one).usage for one in found.answered if one.path == route]
    assert [completion for _, completion in told] == [OUTPUT] * len(told)
    counted = metrics["prompt_token_count"]["successful"]["total_sum"]
    assert counted in (sum(prompt for prompt, _ in told[-REQUESTS:]), REQUESTS * PROMPT)
