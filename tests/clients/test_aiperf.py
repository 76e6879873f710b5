"""AIPerf: a short benchmark over streamed chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.answers import CHAT
from tests.clients.conftest import MODEL, Client, RunProgram

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
# Offline it takes a tokenizer for a name of the hub, even where it is a folder.
CLIENT = Client("aiperf", "aiperf", without=("HF_HUB_OFFLINE",))
REQUESTS, PROMPT, OUTPUT = 4, 32, 12


def test_benchmark(run_program: RunProgram, engine: Path, tmp_path: Path) -> None:
    found = run_program(
        lambda url: [
            *("profile", "--model", MODEL, "--url", url),
            *("--endpoint-type", "chat", "--streaming", "--tokenizer", str(engine)),
            *("--use-server-token-count", "--extra-inputs", "ignore_eos:true"),
            *("--request-count", str(REQUESTS), "--concurrency", "2"),
            *("--synthetic-input-tokens-mean", str(PROMPT), "--output-tokens-mean", str(OUTPUT)),
            *("--synthetic-input-tokens-stddev", "0", "--output-tokens-stddev", "0"),
            *("--artifact-dir", str(tmp_path / "artifacts"), "--ui", "none"),
        ]
    )
    assert [one.path for one in found.answered] == [CHAT] * REQUESTS
    (report,) = (tmp_path / "artifacts").rglob("profile_export_aiperf.json")
    measured = json.loads(report.read_text())
    assert measured["request_count"]["avg"] == REQUESTS
    assert measured["output_sequence_length"]["avg"] == OUTPUT
    assert measured["time_to_first_token"]["avg"] > 0
