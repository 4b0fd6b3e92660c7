"""GET /metrics: the metrics in Prometheus's text format."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from puna.server.metrics import CONTENT_TYPE
from puna.server.service import Service


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()

    @routes.get("/metrics", summary="Metrics in Prometheus's text format", response_class=Response)
    async def metrics() -> Response:
        _ = service.llm  # refuses the request while there is no model
        assert service.observer.metrics is not None
        return Response(service.observer.metrics.text(), headers={"content-type": CONTENT_TYPE})

    return routes
