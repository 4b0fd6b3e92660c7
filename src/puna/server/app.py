"""`create_app`: the ASGI application, a table of routers and of middleware."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from puna import __version__
from puna.errors import show
from puna.server.errors import ApiError, api_error
from puna.server.guard.protect import make_policy, protect
from puna.server.page import routes as page
from puna.server.page.files import page_files
from puna.server.protocol import models, sagemaker
from puna.server.protocol.chat import endpoint as chat
from puna.server.protocol.completions import endpoint as completions
from puna.server.protocol.endpoint import error_response
from puna.server.protocol.messages import endpoint as messages
from puna.server.protocol.responses import endpoint as responses
from puna.server.protocol.scoring import decisions, embeddings, labels, likelihoods, tokens
from puna.server.routes import docs, health, metrics
from puna.server.service import Service
from puna.server.settings import ServerSettings

log = logging.getLogger("puna.server")

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    models.router,
    sagemaker.router,
    health.router,
    metrics.router,
    docs.router,
    page.router,
    embeddings.router,
    labels.router,
    likelihoods.router,
    decisions.router,
    tokens.router,
)
"""Functions that each return the routes of one interface."""


class _App(FastAPI):
    """FastAPI, whose own middleware answers unexpected errors, inside the middleware of `puna.server.guard`."""

    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self._settings = settings
        self._policy = make_policy(settings, page_files())
        self._observe = service.observer.responded
        super().__init__(title="puna", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json")

    def openapi(self) -> dict[str, Any]:
        """Returns the OpenAPI document without the status 422, which FastAPI adds and this server never sends."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            document.pop("components", None)
        assert self.openapi_schema is not None
        return self.openapi_schema

    def build_middleware_stack(self) -> ASGIApp:
        """Returns the application with all middleware."""
        return protect(super().build_middleware_stack(), self._settings, self._policy, self._observe)


def create_app(service: Service, settings: ServerSettings) -> FastAPI:
    """Returns the ASGI application of a service.

    Raises:
        ConfigError: a setting of `puna.server.guard` is invalid.
    """
    app = _App(service, settings)
    app.state.service, app.state.settings = service, settings
    app.state.endpoints = []
    for router in ROUTERS:
        routes = router(service)
        app.include_router(routes)
        app.state.endpoints += docs.endpoints(routes.routes)
    app.add_exception_handler(ApiError, _send_error)
    app.add_exception_handler(HTTPException, _send_http_error)
    app.add_exception_handler(Exception, _send_error)
    return app


async def _send_error(request: Request, exc: Exception) -> Response:
    request_id = request.scope.get("state", {}).get("request_id")
    return error_response(api_error(exc, request_id), request.scope)


def _allowed(headers: Mapping[str, str] | None) -> list[str]:
    """Returns the methods of a path; the server answers HEAD wherever it answers GET."""
    methods = [method for method in (headers or {}).get("Allow", "").split(", ") if method]
    return sorted({*methods, "HEAD"} if "GET" in methods else {*methods})


async def _send_http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path = request.scope["path"]
    allowed = _allowed(exc.headers)
    remedy = f"; use {' or '.join(allowed)}" if allowed else ""
    texts = {
        404: f"there is no path {show(path)}; /openapi.json lists the paths",
        405: f"{request.method} is not allowed at {show(path)}{remedy}",
    }
    error = ApiError(exc.status_code, texts.get(exc.status_code, str(exc.detail)))
    response = error_response(error, request.scope)
    response.headers.update(exc.headers or {})
    if exc.status_code == 405 and allowed:
        response.headers["Allow"] = ", ".join(allowed)
    return response
