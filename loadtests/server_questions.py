"""What a run asks a server before it begins: its model, and how it counts tokens."""

from __future__ import annotations

from typing import Any

import requests

from loadtests.prompts import COMMON_WORDS
from loadtests.random_prompts import Vocabulary, fit_vocabulary
from loadtests.request import request_headers, text_fields

_TIMEOUT_S = 60.0


def find_base_model(host: str, api_key: str | None) -> str:
    """The id of the server's base model: the first of /v1/models that has no parent.

    Raises:
        ValueError: the server does not answer as OpenAI's API does.
    """
    url = f"{host.rstrip('/')}/v1/models"
    try:
        models: list[dict[str, Any]] = _ask("GET", url, api_key)["data"]
        return next(str(model["id"]) for model in models if not model.get("parent"))
    except (requests.RequestException, ValueError, KeyError, TypeError, StopIteration) as error:
        reason = "it lists no base model" if isinstance(error, StopIteration) else error
        raise ValueError(f"cannot ask {url} for the model: {reason}") from error


def find_vocabulary(host: str, model: str, endpoint: str, api_key: str | None) -> Vocabulary:
    """Words that are one token each to the server; a dozen short requests.

    Raises:
        ValueError: it does not say how many tokens a prompt has, or has hardly such a word.
    """
    url = f"{host.rstrip('/')}{endpoint}"

    def count_tokens(text: str) -> int:
        body = {"model": model} | text_fields(endpoint, text, 1)
        try:
            return int(_ask("POST", url, api_key, body)["usage"]["prompt_tokens"])
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot ask {url} how many tokens a prompt has: {error}") from error

    return fit_vocabulary(count_tokens, COMMON_WORDS)


def _ask(method: str, url: str, api_key: str | None, body: Any = None) -> Any:
    with requests.Session() as session:
        session.trust_env = False  # no proxy between the load and the server
        response = session.request(
            method, url, headers=request_headers(api_key), json=body, timeout=_TIMEOUT_S
        )
    response.raise_for_status()
    return response.json()
