"""What `twofour eval` can measure: a model in torch, an engine directory, a server.

Each gives a `Subject`: log-probabilities of a text's tokens, and the labels of the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


class ServerError(ValueError):
    """The server cannot be reached, or does not answer as vLLM and twofour do."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of a text, given those before it.

    Attributes:
        logprob: its log-probability, natural logarithm.
        greedy: whether no token is likelier.
    """

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can score text.

    Attributes:
        token_scores: of every token of a sequence but the first.
        encode: text to token ids, special tokens added as the model's tokenizer is set to.
        model: the model's name.
        mask: the mask's name, None for dense.
        dtype: number type of the computation.
        bos_token_id: None if there is none.
        context_length: most tokens of one sequence to score, None if unknown.
    """

    token_scores: Callable[[Sequence[int]], Sequence[TokenScore]]
    encode: Callable[[str], Sequence[int]]
    model: str
    mask: str | None
    dtype: str
    bos_token_id: int | None
    context_length: int | None

    def score(self, tokens: Sequence[int]) -> float:
        """Log-probability of a sequence; a `evaluation.perplexity.Scorer`."""
        return sum(score.logprob for score in self.token_scores(tokens))


def torch_subject(
    model: str, transform: Path | None, mask: Path | None, parent: Path | None, dtype: str
) -> Subject:
    """A model in torch, transformed if so wished, with the weights that `mask` drops set to zero.

    Raises:
        TransformError: the transform file is malformed or belongs to another model.
        MaskFileError: the mask file is malformed or belongs to another model.
        ModelNotFoundError: there is no such model.
    """
    from maskgen.format.digests import base_digest
    from maskgen.format.mask_file import read_mask
    from maskgen.format.tokenizer import ModelTokenizer
    from maskgen.models import model_name, resolve_model
    from maskgen.torch_model import (
        TorchScorer,
        apply_to_module,
        check_base,
        context_length,
        dtype_name,
        load_model,
    )

    directory = resolve_model(model, transform)
    loaded = None if mask is None else read_mask(mask, parent)
    if loaded is not None:
        check_base(loaded, base_digest(directory), model)
    network, tokenizer = load_model(directory, dtype), ModelTokenizer(directory)
    if loaded is not None:
        apply_to_module(network, loaded)
    scorer = TorchScorer(network)
    return Subject(
        token_scores=lambda tokens: [TokenScore(*score) for score in scorer.tokens(tokens)],
        encode=tokenizer.encode,
        model=model_name(model),
        mask=None if mask is None else mask.name,
        dtype=dtype_name(network),
        bos_token_id=tokenizer.bos_token_id,
        context_length=context_length(network),
    )


@contextmanager
def engine_subject(directory: Path, mask: str | None) -> Iterator[Subject]:
    """An engine directory, run by its own engine in this process.

    Raises:
        EngineDirectoryError: the directory cannot be opened.
        UnknownMaskError: it holds no mask of that name.
    """
    from engines.base import Engine, GenerationRequest
    from engines.cpu.idle import shorten_spinning
    from engines.directory.manifest import read_manifest
    from engines.errors import UnknownMaskError
    from engines.registry import open_engine
    from engines.sampling import SamplingParams

    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    manifest = read_manifest(directory)
    names = [record.name for record in manifest.masks]
    if mask is not None and mask not in names:
        raise UnknownMaskError(f"{directory} has no mask {mask!r}; it has: {', '.join(names)}")

    async def start() -> Engine:
        shorten_spinning()
        return open_engine(directory)

    async def score(tokens: Sequence[int]) -> list[TokenScore]:
        request = GenerationRequest("eval", tuple(tokens), sampling, mask)
        found: list[TokenScore] = []
        async for chunk in engine.generate(request):
            if chunk.error is not None:
                raise ValueError(f"the engine failed: {chunk.error}")
            if chunk.prompt_logprobs is not None:
                entries = [entry for entry in chunk.prompt_logprobs if entry is not None]
                found = [TokenScore(entry.logprob, entry.rank == 1) for entry in entries]
        return _complete(found, len(tokens))

    with asyncio.Runner() as runner:
        engine = runner.run(start())
        try:
            yield Subject(
                token_scores=lambda tokens: runner.run(score(tokens)),
                encode=engine.codec.encode,
                model=manifest.model,
                mask=mask or manifest.default_mask,
                dtype="fp32" if manifest.target == "reference" else engine.describe().values,
                bos_token_id=engine.codec.bos_token_id,
                context_length=engine.describe().context_length,
            )
        finally:
            runner.run(engine.close())


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
        return _complete(found, len(tokens))

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


def _complete(scores: list[TokenScore], tokens: int) -> list[TokenScore]:
    if len(scores) != tokens - 1:
        raise ValueError(f"{tokens} tokens came back with {len(scores)} log-probabilities")
    return scores


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
