"""A running server as the subject of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from evaluation.subject import Subject, TokenScore, complete_scores


class ServerError(ValueError):
    """The server cannot be reached, or does not answer as vLLM and twofour do."""


@contextmanager
def server_subject(
    url: str, model: str | None, mask: str | None, api_key: str | None
) -> Iterator[Subject]:
    """A running server: twofour's, or vLLM's.

    Args:
        url: `http://host:port`, with or without `/v1`.
        model: what requests call the model; None for the first one that the server lists.
        mask: which of a twofour server's masks; None for the default.
        api_key: sent as a bearer token.

    Raises:
        ServerError: it cannot be reached, or lacks what this needs.
    """
    with _connect(url, api_key) as client:
        yield _subject_of(_Server(client), url, model, mask)


def _subject_of(server: _Server, url: str, model: str | None, mask: str | None) -> Subject:
    try:
        listed = server.get("/v1/models")["data"]
        name = model or listed[0]["id"]
    except (LookupError, TypeError):
        raise ServerError(f"{url} lists no model at /v1/models") from None
    if mask is not None:
        name = f"{name.partition(':')[0]}:{mask}"

    def encode(text: str) -> Sequence[int]:
        body = {"model": name, "prompt": text, "add_special_tokens": True}
        tokens: Sequence[int] = server.post("/tokenize", body)["tokens"]
        return tokens

    def score(tokens: Sequence[int]) -> list[TokenScore]:
        # vLLM takes 0 only together with echo.
        body = {
            "model": name,
            "prompt": list(tokens),
            "max_tokens": 0,
            "echo": True,
            "prompt_logprobs": 0,
        }
        choice = server.post("/v1/completions", body)["choices"][0]
        entries = choice.get("prompt_logprobs") or []
        try:
            shown = [
                entry[str(token)]
                for token, entry in zip(tokens, entries, strict=True)
                if entry is not None
            ]
            found = [TokenScore(float(e["logprob"]), e["rank"] == 1) for e in shown]
        except (KeyError, ValueError, TypeError):
            raise ServerError(f"{url} does not answer with vLLM's prompt_logprobs") from None
        return complete_scores(found, len(tokens))

    first = encode("")
    return Subject(
        token_scores=score,
        encode=encode,
        model=name.partition(":")[0],
        mask=name.partition(":")[2] or None,
        dtype="as served",
        bos_token_id=first[0] if first else None,
        context_length=_context_length(listed, name),
    )


def _context_length(listed: list[dict[str, Any]], name: str) -> int | None:
    for entry in listed:
        length = entry.get("max_model_len")
        if entry["id"] == name and isinstance(length, int):
            # vLLM generates a token even where none is asked for, and wants room for it.
            return length if entry.get("owned_by") == "twofour" else length - 1
    return None


def _connect(url: str, api_key: str | None) -> httpx.Client:
    # Checked here, because the library's own message would show the key.
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ServerError("the API key holds a line break, or another character that no key has")
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    root = url.rstrip("/").removesuffix("/v1")
    try:
        return httpx.Client(base_url=root, headers=headers, timeout=600, follow_redirects=True)
    except httpx.InvalidURL as error:
        raise ServerError(f"{url} is not an address: {error}") from None


class _Server:
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str) -> Any:
        return self._send(self._client.build_request("GET", path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._send(self._client.build_request("POST", path, json=body))

    def _send(self, request: httpx.Request) -> Any:
        try:
            response = self._client.send(request)
            if response.is_success:
                return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServerError(f"{request.url}: {error}") from None
        raise ServerError(f"{request.url} answered {response.status_code}: {response.text[:500]}")
