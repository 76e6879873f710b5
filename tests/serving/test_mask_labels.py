"""Per-mask metrics: bounded, whatever is loaded over time."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from serving.mask_labels import MaskLabels
from tests.serving.conftest import App, open_app
from tests.serving.requests import COMPLETION, post


async def labels(app: App) -> set[str]:
    """What `/metrics` tells masks apart by."""
    text = (await app.client.get("/metrics")).text
    return set(re.findall(r'(?:model_name="tiny:|[{,]mask=")([^"]*)"', text))


async def test_masks_beyond_the_limit_share_a_label(tmp_path: Path) -> None:
    root = tmp_path / "masks"
    root.mkdir()
    (root / "m").write_text("mask")
    settings = {"admin_api_key": ("admin",), "mask_root": root, "max_mask_labels": 4}
    async with open_app(tmp_path / "engine", **settings) as app:
        admin = {"authorization": "Bearer admin"}
        for number in range(12):
            name = f"m{number}"
            body = {"mask_name": name, "mask_path": "m"}
            loaded = await app.client.post("/v1/load_mask", json=body, headers=admin)
            assert loaded.status_code == 200
            request = {**COMPLETION, "model": f"tiny:{name}"}
            assert (await post(app, "/v1/completions", request))[0] == 200
        own = await labels(app) - {"_other"}
        assert len(own) == 4
        assert "_other" in await labels(app)
        text = (await app.client.get("/metrics")).text
        total = sum(map(float, re.findall(r"^twofour:mask_resident_bytes{.*} (.*)$", text, re.M)))
        assert total == 14 * 7, "nothing is lost in the sum"
        finished = re.findall(r"^twofour:request_success_total{.*} (.*)$", text, re.M)
        assert sum(map(float, finished)) == 12
        # Unloading makes room.
        for name in own - {"general"}:
            body = {"mask_name": name}
            gone = await app.client.post("/v1/unload_mask", json=body, headers=admin)
            assert gone.status_code == 200
        request = {**COMPLETION, "model": "tiny:m11"}
        assert (await post(app, "/v1/completions", request))[0] == 200
        assert "m11" in await labels(app)
        assert len(await labels(app) - {"_other"}) <= 4


async def test_a_request_that_outlives_its_mask_leaves_no_series(tmp_path: Path) -> None:
    root = tmp_path / "masks"
    root.mkdir()
    settings = {"admin_api_key": ("admin",), "mask_root": root}
    async with open_app(tmp_path / "engine", **settings) as app:
        body = {**COMPLETION, "model": "tiny:french", "prompt": "SLOW", "max_tokens": 20}
        running = asyncio.create_task(post(app, "/v1/completions", body))
        while not app.engine.running:
            await asyncio.sleep(0.01)
        unload = {"mask_name": "french"}
        headers = {"authorization": "Bearer admin"}
        gone = await app.client.post("/v1/unload_mask", json=unload, headers=headers)
        assert gone.status_code == 200
        assert 'model_name="tiny:french"' in (await app.client.get("/metrics")).text
        assert (await running)[0] == 200
        assert "tiny:french" not in (await app.client.get("/metrics")).text


def test_a_mask_that_is_loaded_again_keeps_its_series() -> None:
    dropped: list[str] = []
    labels = MaskLabels(2, dropped.append)
    first = labels.enter("m:a")
    labels.unload("m:a")
    second = labels.enter("m:a")
    labels.leave(first)
    labels.leave(second)
    assert (first, second, dropped) == ("m:a", "m:a", [])
    labels.unload("m:a")
    assert dropped == ["m:a"]
    assert [labels.of(name) for name in ("m", "m:b", "m:c", "m:d")] == [
        "m",
        "m:b",
        "m:c",
        "m:_other",
    ]
