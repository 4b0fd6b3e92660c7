"""POST /v1/classify: labels of texts by a classification head, in vLLM's form."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter
from starlette.responses import Response

from puna.server.protocol.completions.fields import PROMPT
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.fields import HONOURED, INERT, Field, Table
from puna.server.protocol.schemas import INT, NUMBER, TEXT, array, record
from puna.server.protocol.scoring.reading import compute, encoded, usage_of
from puna.server.protocol.types import Text
from puna.server.service import Service

CLASSIFY = Table("ClassifyRequest", (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter with a classification head", required=True),
    Field("input", PROMPT, HONOURED, "a text, token ids, or an array of texts or of arrays of token ids",
          required=True, example="the llama"),
    Field("user", Text(0, 512), INERT, "identifies the end user", example="u"),
), open=False)  # fmt: skip

_RESPONSE = record({
    "id": TEXT, "object": {"const": "list"}, "created": INT, "model": TEXT,
    "data": array(record({"index": INT, "label": TEXT, "probs": array(NUMBER), "num_classes": INT})),
    "usage": record({"prompt_tokens": INT, "total_tokens": INT}),
})  # fmt: skip


def router(service: Service) -> APIRouter:
    """Returns the route, also under vLLM's path."""
    routes = APIRouter()
    for path in ("/v1/classify", "/classify"):
        add_endpoint(routes, service, path, CLASSIFY, _classify, summary="Label texts", response=_RESPONSE)
    return routes


async def _classify(call: Call) -> Response:
    values, llm = call.values, call.service.llm
    adapter = call.service.adapter(values["model"])
    head, _ = llm._classified([(0,)], adapter)  # refuses a model without a head before texts are encoded
    results = await compute(
        call, lambda: llm._classified(encoded(call, values["input"], "input", adapter), adapter)[1]
    )  # fmt: skip
    data = []
    for index, result in enumerate(results):
        classification = head.classify(result.state)
        probs = list(classification.scores)
        data.append({"index": index, "label": classification.label, "probs": probs, "num_classes": len(probs)})
    return call.json({
        "id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": values["model"],
        "data": data, "usage": usage_of(results),
    })  # fmt: skip
