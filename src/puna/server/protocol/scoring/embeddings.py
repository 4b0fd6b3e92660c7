"""POST /v1/embeddings: hidden states of texts, in OpenAI's form."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.responses import Response

from puna.server.errors import unsupported
from puna.server.protocol.completions.fields import PROMPT
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.fields import HONOURED, INERT, Field, Table
from puna.server.protocol.schemas import INT, NUMBER, TEXT, array, record
from puna.server.protocol.scoring.reading import compute, encoded, usage_of
from puna.server.protocol.types import Boolean, Integer, Text
from puna.server.service import Service

EMBEDDING = Table("EmbeddingRequest", (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
    Field("input", PROMPT, HONOURED, "a text, token ids, or an array of texts or of arrays of token ids",
          required=True, example="the llama"),
    Field("encoding_format", Text(values=("float", "base64")), HONOURED, "numbers, or base64 of little-endian float32",
          "float", example="base64"),
    Field("dimensions", Integer(1), HONOURED, "must be the model's hidden size: embeddings cannot be shortened"),
    Field("pooling", Text(values=("last", "mean")), HONOURED, "the state of the last token, or the mean of all tokens",
          "last", example="mean"),
    Field("normalize", Boolean(), HONOURED, "divide each embedding by its Euclidean norm", False, example=True),
    Field("user", Text(0, 512), INERT, "identifies the end user", example="u"),
), open=False)  # fmt: skip

_RESPONSE = record({
    "object": {"const": "list"}, "model": TEXT,
    "data": array(record({
        "object": {"const": "embedding"}, "index": INT, "embedding": {"anyOf": [array(NUMBER), TEXT]},
    })),
    "usage": record({"prompt_tokens": INT, "total_tokens": INT}),
})  # fmt: skip


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()
    add_endpoint(
        routes, service, "/v1/embeddings", EMBEDDING, _embed, summary="Embed texts", response=_RESPONSE
    )  # fmt: skip
    return routes


async def _embed(call: Call) -> Response:
    values, llm = call.values, call.service.llm
    adapter = call.service.adapter(values["model"])
    size = llm.config.hidden_size
    if values["dimensions"] not in (None, size):
        raise unsupported(
            "dimensions", f"dimensions is {values['dimensions']}; embeddings of this model have {size} numbers"
        )
    results = await compute(
        call,
        lambda: llm._pooled(
            encoded(call, values["input"], "input", adapter), values["pooling"], values["normalize"], adapter
        ),
    )
    as_text = values["encoding_format"] == "base64"

    def document() -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": _encode(result.state, as_text)}
            for index, result in enumerate(results)
        ]
        return {"object": "list", "data": data, "model": values["model"], "usage": usage_of(results)}

    return await call.long_json(document)


def _encode(state: NDArray[np.float32], as_text: bool) -> Any:
    return base64.b64encode(state.astype("<f4").tobytes()).decode() if as_text else state.tolist()
