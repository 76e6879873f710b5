"""`POST /v1/responses`: OpenAI's Responses API over the same answers as chat completions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api.answers import STREAMED
from serving.api.response_answer import ResponseAnswer
from serving.auth import ApiRoute
from serving.conversation import start_conversation
from serving.errors import ApiError
from serving.response_input import as_chat, in_words_of_responses
from serving.schemas.responses import ResponseObject, ResponsesRequest
from serving.service import ServiceDep
from serving.streaming import EventStream

router = APIRouter(route_class=ApiRoute, tags=["generation"])

_NOT_KEPT = "responses are not kept: send the whole conversation as input with every request"


@router.post("/v1/responses", response_model=ResponseObject, responses=STREAMED)
async def create_response(body: ResponsesRequest, http: Request, service: ServiceDep) -> Response:
    """Answer a conversation; nothing of it is kept."""
    try:
        conversation = await start_conversation(as_chat(body), http, service)
    except ApiError as error:
        raise in_words_of_responses(error) from error
    answer = ResponseAnswer(body, conversation)
    if body.stream:
        interval = service.settings.keep_alive_interval
        return EventStream(conversation.generation, answer, interval, named=True)
    await answer.read(conversation.generation)
    return Response(answer.whole().model_dump_json(), media_type="application/json")


@router.get("/v1/responses/{response_id}", include_in_schema=False)
@router.delete("/v1/responses/{response_id}", include_in_schema=False)
@router.post("/v1/responses/{response_id}/cancel", include_in_schema=False)
@router.get("/v1/responses/{response_id}/input_items", include_in_schema=False)
async def find_response(response_id: str) -> Response:
    """There is never one."""
    raise ApiError(404, f"there is no response {response_id[:80]!r}: {_NOT_KEPT}")
