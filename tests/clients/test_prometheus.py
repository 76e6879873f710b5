"""promtool, and a Prometheus that scrapes the server (Debian's package `prometheus`)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.client_calibration import free_port
from tests.clients.conftest import MODEL
from tests.serving.conftest import ServerProcess

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
WAIT_S = 90


@pytest.fixture
def recorded(record_property: Callable[[str, object], None]) -> None:
    for program in ("prometheus", "promtool"):
        assert shutil.which(program), f"{program} is missing: apt-get install prometheus"
    told = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"version (\S+?)[+ ]", told.stdout + told.stderr)
    assert version
    record_property("client", "prometheus")
    record_property("version", version[1])


@pytest.mark.usefixtures("recorded")
def test_promtool_reads_the_metrics(server: ServerProcess) -> None:
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    # It complains of the colons in names, which vLLM has too; text that it cannot read ends with 1.
    assert done.returncode in (0, 3), done.stderr
    odd = [line for line in done.stderr.splitlines() if "should not contain ':'" not in line]
    assert odd == []


@pytest.fixture
def prometheus(server: ServerProcess, tmp_path: Path) -> Iterator[str]:
    """URL of a Prometheus that scrapes the server every second."""
    target = server.url.removeprefix("http://")
    scrape = {"job_name": "twofour", "static_configs": [{"targets": [target]}]}
    config = tmp_path / "prometheus.yml"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={address}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={tmp_path / 'data'}"], stdout=log, stderr=log
        )
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.usefixtures("recorded")
def test_scrape(server: ServerProcess, prometheus: str) -> None:
    wait_for(prometheus, 'up{job="twofour"}', lambda value: value == 1)
    counter = f'twofour:generation_tokens_total{{model_name="{MODEL}"}}'
    before = value_of(httpx.get(f"{server.url}/metrics", timeout=60).text)
    body = {"model": MODEL, "prompt": "The river", "max_tokens": 9}
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 9
    wait_for(prometheus, counter, lambda value: value == before + 9)


def value_of(metrics: str) -> float:
    """The generated tokens that the server counts so far."""
    name = re.escape(f'twofour:generation_tokens_total{{model_name="{MODEL}"}}')
    found = re.search(rf"^{name} (\S+)$", metrics, re.M)
    return float(found[1]) if found else 0.0


def wait_for(prometheus: str, query: str, good: Callable[[float], bool]) -> None:
    deadline, seen = time.monotonic() + WAIT_S, None
    while time.monotonic() < deadline:
        try:
            url = f"{prometheus}/api/v1/query"
            told = httpx.get(url, params={"query": query}, timeout=10).raise_for_status()
            answer: Any = told.json()
            seen = answer["data"]["result"]
            if seen and good(float(seen[0]["value"][1])):
                return
        except (httpx.HTTPError, KeyError):
            pass  # It has not started yet.
        time.sleep(0.5)
    raise AssertionError(f"{query} of Prometheus is {seen}")
