"""A Ray cluster of one machine that serves a tiny model, and requests to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from engines.directory.build import BuildRequest
from engines.registry import run_builder
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama

# Ray's proxy gives up after 5 s otherwise, which a busy machine takes to start it.
PROXY_SECONDS = "180"
MASKS = ("french", "law")
PROMPT = "The river carried the timber"


@contextmanager
def serving(folder: Path, **arguments: Any) -> Iterator[str]:
    """The URL of an application with a general mask and `MASKS` to load.

    Args:
        folder: for the model, its masks and its engine directory.
        arguments: further ones of the application.
    """
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = PROXY_SECONDS
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray writes a token into the home folder
    import ray
    from ray import serve

    from deploy.ray.application import Arguments, build

    model = make_tiny_llama(folder / "model", max_position_embeddings=2048)
    masks = folder / "masks"
    masks.mkdir()
    for seed, name in enumerate(MASKS):
        random_mask(model, masks / f"{name}.safetensors", seed=seed, domain=name)
    general = random_mask(model, folder / "general.safetensors", seed=2, domain="general")
    run_builder("cpu", BuildRequest(model, "tiny", {"general": general}, folder / "engine"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_ray()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        application = Arguments(
            directory=folder / "engine",
            mask_folder=masks,
            server={"engine_options": {"threads": 1}},
            **arguments,
        )
        serve.run(build(application), name="twofour")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def start_ray() -> None:
    """Ray waits 30 s for its own processes, however busy the machine is."""
    import ray

    for attempts_left in (2, 1, 0):
        try:
            ray.init(num_cpus=4, include_dashboard=False, object_store_memory=128 << 20)
            return
        except Exception as error:
            ray.shutdown()
            if not attempts_left or "timed out during startup" not in str(error):
                raise


def request(mask: str, tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "model": f"tiny:{mask}",
        "prompt": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }


def ask(url: str, mask: str, tokens: int = 8) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=request(mask, tokens), timeout=120)
