"""Metrics that Prometheus can read, with bounded labels."""

from __future__ import annotations

import asyncio
import time

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import App

COMPLETION = {"model": "tiny:french", "prompt": "hello", "max_tokens": 4, "n": 2}


async def scrape(app: App) -> dict[str, list]:
    answer = await app.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    grouped: dict[str, list] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            grouped.setdefault(sample.name, []).append((sample.labels, sample.value))
    return grouped


def value(samples: dict[str, list], name: str, **labels: str) -> float:
    return sum(
        number for found, number in samples[f"twofour:{name}"] if labels.items() <= found.items()
    )


async def test_a_request_is_counted_once_in_every_metric(app: App) -> None:
    assert (await app.client.post("/v1/completions", json=COMPLETION)).status_code == 200
    samples = await scrape(app)
    french = {"model_name": "tiny:french"}
    assert value(samples, "request_success_total", finished_reason="length", **french) == 2
    assert value(samples, "time_to_first_token_seconds_count", **french) == 2
    assert value(samples, "inter_token_latency_seconds_count", **french) == 6
    assert value(samples, "request_time_per_output_token_seconds_count", **french) == 2
    assert value(samples, "e2e_request_latency_seconds_count", **french) == 2
    assert value(samples, "request_prompt_tokens_sum", **french) == 5
    assert value(samples, "request_generation_tokens_sum", **french) == 8
    assert value(samples, "generation_tokens_total") == 8
    assert value(samples, "prompt_tokens_total") == 5
    assert value(samples, "http_requests_total", route="/v1/completions", status="200") == 1


async def test_metrics_say_what_runs(app: App) -> None:
    samples = await scrape(app)
    [(labels, _)] = samples["twofour:engine_info"]
    assert (labels["isa"], labels["layout"], labels["kind"]) == ("none", "fake-1", "fake")
    assert value(samples, "sparse_layer_share") == 0.75
    assert samples["twofour:kernel_info"] == [({"shape": "64 x 64", "kernel": "fake"}, 1.0)]
    assert {labels["mask"] for labels, _ in samples["twofour:mask_info"]} == {"general", "french"}
    version = (await app.client.get("/version")).json()["engine"]
    assert (version["isa"], version["layout"]) == ("none", "fake-1")
    assert version["sparse_layer_share"] == 0.75


async def test_masks_in_use_have_the_shape_that_routers_read(app: App) -> None:
    body = {"model": "tiny:french", "prompt": "HANG"}
    hanging = asyncio.create_task(app.client.post("/v1/completions", json=body))
    while not app.engine.running:
        await asyncio.sleep(0.01)
    samples = await scrape(app)
    [(labels, stamp)] = samples["twofour:mask_requests_info"]
    assert labels == {
        "max_lora": "2",
        "running_lora_adapters": "tiny:french",
        "waiting_lora_adapters": "",
    }
    assert abs(stamp - time.time()) < 60
    assert value(samples, "num_requests_running") == 1
    assert value(samples, "http_generations_in_flight") == 1
    assert value(samples, "choices_waiting_first_token") == 1
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def test_what_clients_type_makes_no_new_series(app: App) -> None:
    for i in range(20):
        await app.client.request(f"METHOD{i}", f"/path{i}")
        await app.client.get(f"/v1/models/name{i}")
        await app.client.post("/v1/completions", json={**COMPLETION, "model": f"model{i}"})
    samples = await scrape(app)
    series = {tuple(sorted(labels.items())) for labels, _ in samples["twofour:http_requests_total"]}
    assert len(series) == 3, series
    assert "twofour:request_success_total" not in samples


async def test_every_app_has_its_own_registry(app: App, tmp_path) -> None:
    from tests.serving.conftest import open_app

    await app.client.post("/v1/completions", json=COMPLETION)
    async with open_app(tmp_path / "other") as other:
        assert "twofour:request_success_total" not in await scrape(other)
