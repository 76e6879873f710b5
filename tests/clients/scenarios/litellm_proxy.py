"""LiteLLM's proxy in front of the server, asked by OpenAI's client."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from scenario import QUESTION, REPORT, WEATHER, WEATHER_QUESTION, main

ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER},
}
START_S = 180


@contextmanager
def proxy(url: str, model: str) -> Iterator[OpenAI]:
    """A proxy that calls the server's model `ours`, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ours = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none-needed"}
    key = f"sk-{secrets.token_hex(32)}"
    config = {
        "general_settings": {"master_key": key},
        "model_list": [{"model_name": "ours", "litellm_params": ours}],
        "litellm_settings": {"num_retries": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config))
        command = [str(Path(sys.executable).with_name("litellm")), "--config", str(path)]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        log = (Path(folder) / "log").open("w+")
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            wait(f"http://127.0.0.1:{port}", process, log)
            where = f"http://127.0.0.1:{port}/v1"
            with OpenAI(base_url=where, api_key=key, max_retries=0) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)


def wait(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health/liveliness", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    log.seek(0)
    raise RuntimeError("the proxy did not start:\n" + log.read()[-4000:])


def everything(url: str, model: str) -> Any:
    """One start of the proxy, which takes long, for all that is asked of it."""
    with proxy(url, model) as client:
        return {"text": text(client), "tools": tools(client), "responses": responses(client)}


def text(client: OpenAI) -> Any:
    asked = {"model": "ours", "messages": ASKED, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=usage))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    return {
        "text": whole.choices[0].message.content,
        "usage": whole.usage.model_dump(),
        "streamed": "".join(filter(None, pieces)),
        "streamed_usage": chunks[-1].usage.model_dump(),
    }


def tools(client: OpenAI) -> Any:
    history: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    asked = {"model": "ours", "tools": [TOOL], "temperature": 0}
    forced = {**asked, "messages": history, "tool_choice": "required"}
    with client.chat.completions.stream(**forced) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    message = client.chat.completions.create(**forced).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": REPORT} for call in message.tool_calls
    ]
    last = client.chat.completions.create(
        **asked, messages=[*history, message, *results], max_tokens=24
    )
    return {
        "calls": shown(message.tool_calls),
        "streamed": shown(streamed),
        "answer": last.choices[0].message.content,
    }


def shown(calls: Any) -> Any:
    return [{"name": call.function.name, "arguments": call.function.arguments} for call in calls]


def responses(client: OpenAI) -> Any:
    asked = {"model": "ours", "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    return {
        "text": whole.output_text,
        "usage": whole.usage.model_dump(),
        "streamed": events[-1].response.output_text,
    }


main({"everything": everything})
