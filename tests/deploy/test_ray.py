"""Two replicas on one machine: masks find theirs, answers stream, and one may die under load."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from tests.deploy.ray_cluster import MASKS, ask, request, serving

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
HEARD_SECONDS = 4.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("ray"), min_replicas=2, max_replicas=2) as running:
        yield running


def replica_of(url: str, mask: str) -> str:
    answer = ask(url, mask)
    assert answer.status_code == 200, (answer.status_code, answer.headers, answer.text)
    return answer.headers["x-twofour-replica"]


@pytest.fixture(scope="module")
def homes(url: str) -> tuple[str, str]:
    """The replica of each mask.

    Until the router has heard where a mask is, which replicas tell it ten times a second, further
    requests would bring the mask to the other one, too.
    """
    found = []
    for mask in MASKS:
        found.append(replica_of(url, mask))
        time.sleep(HEARD_SECONDS)
    return found[0], found[1]


def test_each_mask_goes_to_the_replica_that_holds_it(url: str, homes: tuple[str, str]) -> None:
    assert homes[0] != homes[1]
    for _ in range(5):
        assert (replica_of(url, MASKS[0]), replica_of(url, MASKS[1])) == homes


@pytest.mark.usefixtures("homes")
def test_answers_are_streamed_and_are_the_same(url: str) -> None:
    whole = ask(url, MASKS[0], 200).json()["choices"][0]["text"]
    pieces, text = 0, ""
    body = request(MASKS[0], 200, stream=True)
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                pieces += 1
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert text == whole
    assert pieces > 20
    assert ask(url, MASKS[1], 200).json()["choices"][0]["text"] != whole


def test_refusals_are_the_servers_own(url: str) -> None:
    unknown = ask(url, "missing")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"] == "tiny"
    assert httpx.get(f"{url}/metrics", timeout=60).status_code == 404
    broken = httpx.post(f"{url}/v1/completions", content=b"{", timeout=60)
    assert broken.status_code == 400
    large = httpx.post(f"{url}/v1/completions", content=b" " * (5 << 20), timeout=60)
    assert large.status_code == 413


def stream(url: str, mask: str, begun: Event) -> str:
    """`done`, `lost` (told that its replica died), or `cut`."""
    body = request(mask, 1500, stream=True)
    end = "cut"
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        for line in answer.iter_lines():
            if "replica_died" in line:
                end = "lost"
            if line.startswith("data: {"):
                begun.set()
            if line == "data: [DONE]":
                return "done"
    return end


def test_a_replica_dies_under_load(url: str, homes: tuple[str, str]) -> None:
    import ray

    _, dies = homes
    begun = [Event() for _ in range(8)]
    with ThreadPoolExecutor(16) as pool:
        ends: list[Future[str]] = [
            pool.submit(stream, url, MASKS[i % 2], event) for i, event in enumerate(begun)
        ]
        for event in begun:
            assert event.wait(120)
        (actor,) = [
            entry["name"]
            for entry in ray.util.list_named_actors(all_namespaces=True)
            if dies in entry["name"]
        ]
        ray.kill(ray.get_actor(actor, namespace="serve"))
        fresh = [pool.submit(ask, url, MASKS[i % 2]) for i in range(8)]
        answers = [future.result(timeout=180) for future in fresh]
        found = [future.result(timeout=180) for future in ends]
    assert found[0::2] == ["done"] * 4
    assert set(found[1::2]) <= {"lost", "done"}
    assert "lost" in found[1::2]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert dies not in [answer.headers["x-twofour-replica"] for answer in answers]
