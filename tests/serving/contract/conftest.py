"""One server process per kind of engine, on the same tiny model with two masks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from engines.directory.build import BuildRequest
from engines.registry import run_builder
from tests.engines.conftest import random_mask
from tests.serving.conftest import ServerProcess, start_process
from tests.tiny_model import make_tiny_llama

VLLM = pytest.param(
    "vllm",
    marks=[
        pytest.mark.vllm,
        pytest.mark.timeout(900),
        pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
    ],
)
KINDS = ("reference", "cpu", VLLM)
OPTIONS = {"vllm": ["enforce_eager=true", f"kv_cache_bytes={64 << 20}"]}
"""Engine options by kind: without these vLLM compiles for minutes and takes a gigabyte."""
START_SECONDS = {"vllm": 300.0}
ADMIN_KEY = "admin"


@dataclass
class Served:
    """An engine of one kind behind a real server."""

    kind: str
    directory: Path
    server: ServerProcess
    client: OpenAI
    mask_root: Path


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/` and the masks `general`, `french` and `late`."""
    folder = tmp_path_factory.mktemp("contract")
    model = make_tiny_llama(folder / "model", head_dim=32)  # the least that vLLM has on a CPU
    masks = folder / "masks"
    masks.mkdir()
    for seed, name in enumerate(("general", "french", "late")):
        random_mask(model, masks / f"{name}.safetensors", seed=seed, domain=name)
    other = make_tiny_llama(folder / "other", seed=1, head_dim=32)
    random_mask(other, masks / "foreign.safetensors")
    (masks / "broken.safetensors").write_bytes(b"\xff" * 100)
    return folder


@pytest.fixture(scope="session", params=KINDS)
def served(
    request: pytest.FixtureRequest, model_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    out = tmp_path_factory.mktemp("engines") / request.param
    masks = model_files / "masks"
    run_builder(
        request.param,
        BuildRequest(
            model=model_files / "model",
            model_name="tiny-llama",
            masks={name: masks / f"{name}.safetensors" for name in ("general", "french")},
            out=out,
        ),
    )
    command = [sys.executable, "-m", "twofour.cli", "serve", str(out), "--port", "0"]
    command += ["--admin-api-key", ADMIN_KEY, "--mask-root", str(masks)]
    for option in OPTIONS.get(request.param, ()):
        command += ["--engine-option", option]
    server = start_process(command, START_SECONDS.get(request.param, 180.0))
    client = OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120)
    yield Served(request.param, out, server, client, masks)
    client.close()
    assert server.stop() == 0, "".join(server.log)
    log = "".join(server.log)
    assert "Traceback" not in log, log
