"""The routes for `vllm serve`, with vLLM's engine client played by a recorder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.vllm_plugin.build import build
from engines.vllm_plugin.endpoint import MaskRoutes
from maskgen.format.mask_file import read_mask


class Client:
    """What the routes use of vLLM's engine client."""

    def __init__(self, model: Path, fail: bool = False) -> None:
        self.model_config = SimpleNamespace(model=str(model))
        self.calls: list[Any] = []
        self._fail = fail

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.calls.append(("pause", mode, clear_cache))

    async def collective_rpc(self, method: str, timeout: float, args: tuple[str, str, str]) -> None:
        self.calls.append((method, *args))
        if self._fail:
            raise RuntimeError("a worker failed")

    async def resume_generation(self) -> None:
        self.calls.append("resume")


async def served(client: Client) -> httpx.AsyncClient:
    app = FastAPI()
    plugin = MaskRoutes()
    plugin.attach_router(app)
    await plugin.init_state(client, app.state, None)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vllm")


@pytest.fixture
def directory(tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path) -> Path:
    masks = {"general": mask_of(tiny_model), "french": mask_of(tiny_model, seed=1)}
    out = tmp_path / "engine"
    build(BuildRequest(model=tiny_model, model_name="tiny", masks=masks, out=out))
    return out


async def test_masks_are_listed_and_switched_between_batches(directory: Path) -> None:
    client = Client(directory)
    http = await served(client)
    listed = (await http.get("/v1/masks")).json()
    assert listed["active"] == "general"
    assert [m["id"] for m in listed["data"]] == ["general", "french"]
    assert (await http.post("/v1/masks/active", json={"mask": "general"})).status_code == 200
    assert client.calls == []  # it was active already
    answer = await http.post("/v1/masks/active", json={"mask": "french"})
    file = directory / "masks" / "french.safetensors"
    digest = read_mask(file).digest
    assert answer.json() == {"active": "french", "digest": digest}
    assert client.calls == [
        ("pause", "wait", True),
        ("twofour_switch_mask", str(file), digest, read_manifest(directory).identity),
        "resume",
    ]
    assert (await http.get("/v1/masks")).json()["active"] == "french"


async def test_bad_requests(directory: Path) -> None:
    client = Client(directory)
    http = await served(client)
    unknown = await http.post("/v1/masks/active", json={"mask": "../../etc/passwd"})
    assert unknown.status_code == 404
    assert "no mask named" in unknown.json()["error"]["message"]
    assert (await http.post("/v1/masks/active", json={"file": "x"})).status_code == 422
    assert client.calls == []


async def test_a_failed_switch_resumes_and_keeps_the_former_mask(directory: Path) -> None:
    client = Client(directory, fail=True)
    http = await served(client)
    with pytest.raises(RuntimeError, match="a worker failed"):
        await http.post("/v1/masks/active", json={"mask": "french"})
    assert client.calls[-1] == "resume"
    assert (await http.get("/v1/masks")).json()["active"] == "general"


async def test_other_models_have_no_masks(tiny_model: Path) -> None:
    http = await served(Client(tiny_model))
    assert (await http.get("/v1/masks")).status_code == 404
    assert (await http.post("/v1/masks/active", json={"mask": "general"})).status_code == 404
