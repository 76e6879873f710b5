"""`GET /v1/models` and `/v1/models/{id}`: the base model, and one card for each loaded mask."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from serving.api.answers import ERRORS, json_response
from serving.auth import ApiRoute
from serving.schemas.other import ModelCard, ModelList
from serving.service import ServiceDep

router = APIRouter(route_class=ApiRoute, tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def list_models(service: ServiceDep) -> Response:
    """All names that requests may give as `model`."""
    return json_response(ModelList(object="list", data=service.names.cards()))


@router.get("/v1/models/{model:path}", response_model=ModelCard, responses=ERRORS)
async def retrieve_model(model: str, service: ServiceDep) -> Response:
    """One of them. Names may contain slashes."""
    return json_response(service.names.card(model))
