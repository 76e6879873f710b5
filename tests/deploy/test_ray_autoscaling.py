"""Replicas come as requests queue up, and go when there are none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from tests.deploy.ray_cluster import MASKS, request, serving

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
CLIENTS = 6
DEADLINE_SECONDS = 240


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ray")
    limits = {"min_replicas": 1, "max_replicas": 2, "target_requests": 1}
    with serving(folder, **limits, upscale_seconds=1, downscale_seconds=2) as running:
        yield running


def running_replicas() -> int:
    from ray import serve

    states = serve.status().applications["twofour"].deployments["Replica"].replica_states
    return states.get("RUNNING", 0)


def wait_for(replicas: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while running_replicas() != replicas:
        assert time.monotonic() < deadline, f"{running_replicas()} replicas, not {replicas}"
        time.sleep(0.5)


def keep_asking(url: str, enough: Event) -> list[httpx.Response]:
    answers = []
    while not enough.is_set():
        body = request(MASKS[0], 1000)
        answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=240))
    return answers


def test_replicas_follow_the_queue(url: str) -> None:
    wait_for(1)
    enough = Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(keep_asking, url, enough) for _ in range(CLIENTS)]
        try:
            wait_for(2)
        finally:
            enough.set()
        answers = [answer for future in asked for answer in future.result(timeout=240)]
    assert {answer.status_code for answer in answers} == {200}
    texts = {answer.json()["choices"][0]["text"] for answer in answers}
    assert len(texts) == 1  # whichever replica answered
    wait_for(1)
