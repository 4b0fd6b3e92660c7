"""POST /v1/score: log-likelihoods of continuations, in the form of vLLM's scores."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from puna.errors import show
from puna.prompt_scores import PromptLosses
from puna.server.errors import ApiError
from puna.server.protocol.completions.fields import PROMPT
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.fields import HONOURED, INERT, Field, Table
from puna.server.protocol.schemas import INT, NUMBER, TEXT, array, record
from puna.server.protocol.scoring.reading import check_length, compute, usage_of
from puna.server.protocol.types import Text
from puna.server.service import Service

SCORE = Table("ScoreRequest", (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
    Field("text_1", PROMPT, HONOURED, "the context, or one context for each continuation", required=True,
          example="the llama"),
    Field("text_2", PROMPT, HONOURED, "the continuations, whose log-likelihoods in nats are the scores", required=True,
          example=[" lives", " is"]),
    Field("user", Text(0, 512), INERT, "identifies the end user", example="u"),
), open=False)  # fmt: skip

_RESPONSE = record({
    "id": TEXT, "object": {"const": "list"}, "created": INT, "model": TEXT,
    "data": array(record({"index": INT, "object": {"const": "score"}, "score": NUMBER})),
    "usage": record({"prompt_tokens": INT, "total_tokens": INT}),
})  # fmt: skip


def router(service: Service) -> APIRouter:
    """Returns the route, also under vLLM's path."""
    routes = APIRouter()
    for path in ("/v1/score", "/score"):
        add_endpoint(
            routes, service, path, SCORE, _score, summary="Compute log-likelihoods of continuations",
            response=_RESPONSE,
        )  # fmt: skip
    return routes


async def _score(call: Call) -> Response:
    values, llm = call.values, call.service.llm
    adapter = call.service.adapter(values["model"])
    contexts, continuations = (_texts(values[name]) for name in ("text_1", "text_2"))
    if len(contexts) not in (1, len(continuations)):
        counts = f"text_1 has {len(contexts)} texts and text_2 has {len(continuations)}"
        message = f"{counts}; text_1 must have one text, or as many as text_2"
        raise ApiError(400, message, param="text_1", code="invalid_value")
    shares_prefix = len(contexts) == 1
    contexts *= len(continuations) if shares_prefix else 1

    longest = llm.longest_text(adapter)

    def make() -> list[PromptLosses]:
        results = []
        for context, text in zip(contexts, continuations, strict=True):
            check_length(len(llm._encode(context)) + _count(call, text), longest, "text_2")
            results += llm._continuation_losses(context, [text], adapter)
        return results

    results = await compute(call, make, shares_prefix=shares_prefix)
    data = [
        {"index": index, "object": "score", "score": float(-result.values.sum())}
        for index, result in enumerate(results)
    ]
    return call.json({
        "id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": values["model"],
        "data": data, "usage": usage_of(results),
    })  # fmt: skip


def _texts(value: Any) -> list[Any]:
    """Returns the texts, or lists of token ids, in a field."""
    return [value] if isinstance(value, str) or isinstance(value[0], int) else list(value)


def _count(call: Call, text: Any) -> int:
    if not isinstance(text, str):
        return len(text)
    count = len(call.service.llm.tokenizer.encode(text, add_special_tokens=False))
    if not count:
        raise ApiError(400, f"text_2 has {show(text)}, which has no tokens", param="text_2", code="invalid_value")
    return count
