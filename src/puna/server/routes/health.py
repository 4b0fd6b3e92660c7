"""GET /health and GET /health/ready: whether the process runs, and whether it accepts requests."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from puna.server.protocol.endpoint import json_response
from puna.server.service import Service


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter()

    @routes.get("/health", summary="Whether the process runs", response_class=Response)
    async def health() -> Response:
        return json_response({"status": service.state})

    @routes.get("/health/ready", summary="Whether requests are accepted", response_class=Response)
    async def ready() -> Response:
        is_ready = service.state == "ready"
        headers = {} if is_ready else {"Retry-After": "2"}
        return json_response({"status": service.state}, 200 if is_ready else 503, headers)

    return routes
