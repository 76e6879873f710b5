"""`POST /tokenize` and `/detokenize`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from engines.errors import InvalidRequestError
from serving.api.answers import ERRORS, json_response
from serving.auth import ApiRoute
from serving.errors import invalid
from serving.schemas.other import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from serving.service import ServiceDep

router = APIRouter(route_class=ApiRoute, tags=["tokens"])


@router.post("/tokenize", response_model=TokenizeResponse, responses=ERRORS)
async def tokenize(body: TokenizeRequest, service: ServiceDep) -> Response:
    """Token ids of a text or of a conversation; they may be more than the context holds."""
    if body.model is not None:
        service.names.resolve(body.model)
    if body.messages is not None:
        text = await service.prompts.render(body.messages, body.tools or ())
        special = bool(body.add_special_tokens)
    else:
        text = body.prompt or ""
        special = body.add_special_tokens is not False

    def answer() -> Response:
        ids = service.engine.codec.encode(text, add_special_tokens=special)
        found = TokenizeResponse(count=len(ids), max_model_len=service.context_length, tokens=ids)
        if body.return_token_strs:
            found.token_strs = [service.tokens.text(token_id) for token_id in ids]
        return json_response(found)

    try:
        return await service.prompts.apart(answer, len(text))
    except InvalidRequestError as error:
        param = "prompt" if body.messages is None else "messages"
        raise invalid(f"{param}: {error}", param) from error


@router.post("/detokenize", response_model=DetokenizeResponse, responses=ERRORS)
async def detokenize(body: DetokenizeRequest, service: ServiceDep) -> Response:
    """The text of token ids, special tokens included."""
    if body.model is not None:
        service.names.resolve(body.model)
    service.prompts.check_ids(body.tokens, "tokens")

    def answer() -> Response:
        text = service.engine.codec.decode(body.tokens, skip_special_tokens=False)
        return json_response(DetokenizeResponse(prompt=text))

    return await service.prompts.apart(answer, len(body.tokens))
