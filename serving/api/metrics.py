"""`GET /metrics` for Prometheus and `GET /version` for people."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from serving.api.answers import ERRORS
from serving.auth import ApiRoute
from serving.engine_metrics import sparse_share
from serving.metrics import CONTENT_TYPE
from serving.service import ServiceDep

router = APIRouter(route_class=ApiRoute, tags=["monitoring"])


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", responses=ERRORS, response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})


@router.get("/version", responses=ERRORS)
async def show_version(service: ServiceDep) -> dict[str, Any]:
    """Versions, and what really runs: engine, instruction set, layout, kernels, masks."""
    info = service.engine.describe()
    return {
        "version": package_version(),
        "python": platform.python_version(),
        "tools": {"parser": service.tooling.form.name, "prompt": service.tooling.prompt},
        "engine": {
            "kind": info.kind,
            "version": info.version,
            "model": info.model,
            "base_digest": info.base_digest,
            "context_length": info.context_length,
            "isa": info.isa,
            "numerics": info.numerics,
            "layout": info.layout,
            "values": info.values,
            "sparse_layers": info.sparse_layers,
            "eligible_layers": info.eligible_layers,
            "sparse_layer_share": sparse_share(info),
            "kernels": info.kernels,
            "weight_bytes": info.weight_bytes,
            "dense_bytes": info.dense_bytes,
            "default_mask": info.default_mask,
            "masks": {mask.name: mask.digest for mask in info.masks},
        },
    }


def package_version() -> str:
    """The version of this distribution."""
    try:
        return version("twofour")
    except PackageNotFoundError:
        return "unknown"
