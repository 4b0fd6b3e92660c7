"""The HTTP routes of the chat page."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from puna.server.page.files import HEADERS, PREFIX, page_files
from puna.server.service import Service


def router(service: Service | None = None) -> APIRouter:
    """Returns the routes of `/` and `/page/...`. They do not use the model.

    They need no API key (`puna.server.guard`), because the files contain nothing private.
    """
    routes = APIRouter(include_in_schema=False)

    async def respond(request: Request) -> Response:
        file = page_files().get(request.scope["path"])
        if file is None:
            raise HTTPException(404, "the page has no such file")
        headers = HEADERS | {"ETag": file.etag}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.content_type, headers=headers)

    for path in ("/", PREFIX + "{name:path}"):
        routes.add_api_route(path, respond, methods=["GET", "HEAD"], response_model=None)
    return routes
