"""`POST /tokenize` and `/detokenize`, `GET /tokenizer_info`: vLLM's names and shapes."""

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
    TokenizerInfo,
)
from serving.service import ServiceDep

router = APIRouter(route_class=ApiRoute, tags=["tokens"])


@router.post("/tokenize", response_model=TokenizeResponse, responses=ERRORS)
async def tokenize(body: TokenizeRequest, service: ServiceDep) -> Response:
    """Token ids of a text or of a conversation; they may be more than the context holds."""
    if body.model is not None:
        service.names.resolve(body.model)
    if body.messages is not None:
        text = await service.prompts.render(body.messages, body.tools or (), body)
        special = bool(body.add_special_tokens)
    else:
        text = body.prompt or ""
        special = body.add_special_tokens is not False

    def answer() -> Response:
        codec = service.engine.codec
        ids = codec.encode(text, add_special_tokens=special)
        found = TokenizeResponse(
            count=len(ids),
            max_model_len=service.context_length,
            tokens=ids,
            token_strs=codec.token_spellings(ids) if body.return_token_strs else None,
        )
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


# Where its files lay on the machine that it was saved on, and code that is never run here.
_NOT_SHOWN = {"auto_map", "merges_file", "name_or_path", "tokenizer_file", "vocab_file"}


@router.get("/tokenizer_info", response_model=TokenizerInfo, responses=ERRORS)
async def show_tokenizer(service: ServiceDep) -> Response:
    """The tokenizer's settings, its special tokens and the chat template."""
    codec = service.engine.codec
    shown = {name: value for name, value in codec.config.items() if name not in _NOT_SHOWN}
    in_use = {
        "tokenizer_class": str(shown.get("tokenizer_class") or "PreTrainedTokenizerFast"),
        **dict.fromkeys(("bos_token", "eos_token", "pad_token")),
        **codec.special_tokens,
        "chat_template": codec.template.source if codec.template else None,
    }
    return json_response(TokenizerInfo(**(shown | in_use)))
