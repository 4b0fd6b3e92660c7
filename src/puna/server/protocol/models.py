"""GET /v1/models: the base model and its adapters, in OpenAI's or Anthropic's shape."""

from __future__ import annotations

import datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from puna.server.guard.exchange import is_anthropic
from puna.server.protocol.endpoint import error_responses, json_response
from puna.server.protocol.sampling import sampling_defaults
from puna.server.protocol.schemas import ANY_MODEL, MODELS, Schema
from puna.server.service import Service


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter()

    @routes.get("/v1/models", summary="List the models", response_class=Response, responses=_described(MODELS))
    async def list_models(request: Request) -> Response:
        cards = [_card(service, name, request) for name in service.names]
        if is_anthropic(request.scope):
            ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
            return json_response({"data": cards, "has_more": False, **ends})
        return json_response({"object": "list", "data": cards, "models": []})

    @routes.get("/v1/models/{model:path}", summary="Describe a model", response_class=Response,
                responses=_described(ANY_MODEL))  # fmt: skip
    async def get_model(model: str, request: Request) -> Response:
        service.adapter(model)
        return json_response(_card(service, model, request))

    return routes


def _described(schema: Schema) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "the answer", "content": {"application/json": {"schema": schema}}},
            **error_responses("/v1/models")}  # fmt: skip


def _card(service: Service, name: str, request: Request) -> dict[str, Any]:
    """Returns the description of a model."""
    adapter = service.adapter(name)
    longest = service.llm.longest_text(adapter)
    if is_anthropic(request.scope):
        created = datetime.datetime.fromtimestamp(service.created, datetime.timezone.utc)
        return {
            "type": "model", "id": name, "display_name": name, "created_at": created.isoformat(), "lifecycle": "active",
            "max_input_tokens": longest, "max_tokens": longest,
        }  # fmt: skip
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "puna", "root": service.name,
        "parent": None if adapter is None else service.name, "max_model_len": longest,
        "sampling_defaults": sampling_defaults(service),
    }  # fmt: skip
