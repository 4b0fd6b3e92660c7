"""GET /docs: the fields of all endpoints, as a page that loads nothing from other servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from puna.server.protocol.pages import STYLE, Endpoint, page
from puna.server.service import Service


def endpoints(routes: Iterable[BaseRoute]) -> Iterator[Endpoint]:
    """Yields the endpoints that have tables."""
    for route in routes:
        endpoint = getattr(getattr(route, "endpoint", None), "described", None)
        if isinstance(endpoint, Endpoint):
            yield endpoint


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    result = APIRouter()

    @result.get("/docs", summary="Show the fields of all endpoints", response_class=HTMLResponse)
    async def docs(request: Request) -> Response:
        return HTMLResponse(page(request.app.state.endpoints, service.settings.limits))

    @result.get("/docs/style.css", include_in_schema=False, response_class=Response)
    async def style() -> Response:
        return Response(STYLE, media_type="text/css")

    return result
