"""A server with the chat page and a scripted model, in a thread. The last message of the user selects the answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from puna.server.page.routes import router
from tests.server.page.texts import DEMO, HOSTILE, KINDS, LONG

CONTEXT = 16_384
MODELS = [("tiny-llama", None), ("poet", "tiny-llama"), ("lawyer", "tiny-llama")]


def _tokens(text: str) -> list[str]:
    """Splits a text as a tokenizer would: words with their leading space, and single other characters."""
    return re.findall(r" ?\w{1,6}|\s|.", text, re.S)


def script(prompt: str, model: str) -> tuple[list[str], float]:
    """Returns the pieces of an answer and the seconds between them."""
    name, _, argument = prompt.partition(" ")
    if name == "hostile":
        return list(HOSTILE[int(argument)]), 0
    if name == "long":
        return _tokens(LONG)[:10_000], 0.0005
    if name == "kind":
        return _tokens(KINDS[argument])[:10_000], 0.0005
    if name == "slow":
        return [f"Word {index} of a slow answer. " for index in range(400)], 0.02
    if name == "fill":
        return ["a word "] * 40, 0
    if name == "demo":
        return _tokens(DEMO), float(argument or 0) / 1000
    return _tokens(f"Here is what {model} says about “{prompt}”: it is a **good** question. The end."), 0.001


def probability(token: str, rank: int) -> float:
    """Returns a probability that depends on the token only."""
    share = hashlib.sha256(token.encode()).digest()[0] / 255
    best = 0.15 + 0.84 * share**0.35
    return best if rank == 0 else (1 - best) / 2**rank


class Mock:
    """The application, and what it recorded."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.requests: list[dict[str, Any]] = []
        self.cancelled = 0
        self.loading = False
        self.defaults = {"temperature": 0.7, "top_p": 0.95}
        self.app = FastAPI()
        self.app.include_router(router())
        self.app.add_api_route("/v1/models", self._models, response_model=None)
        self.app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"], response_model=None)

    def _refusal(self, request: Request) -> Response | None:
        if self.loading:
            return _error(503, "the model is loading")
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _error(401, "the API key is missing or unknown")

    async def _models(self, request: Request) -> Response:
        models = [
            {"id": name, "object": "model", "created": 1, "owned_by": "puna", "root": "tiny-llama", "parent": parent,
             "max_model_len": CONTEXT, "sampling_defaults": self.defaults}
            for name, parent in MODELS
        ]  # fmt: skip
        return self._refusal(request) or JSONResponse({"object": "list", "data": models})

    async def _chat(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        body = await request.json()
        self.requests.append(body)
        prompt = next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")
        if prompt.startswith("refuse"):
            return _error(400, "temperature must be between 0 and 2, got 7")
        if sum("fill" in message["content"] for message in body["messages"]) > 1:
            message = f"the prompt has 17000 tokens, but the model's context is {CONTEXT} tokens"
            return _error(400, message, code="context_length_exceeded")
        return StreamingResponse(self._stream(request, body, prompt), media_type="text/event-stream")

    async def _stream(self, request: Request, body: dict[str, Any], prompt: str) -> AsyncIterator[str]:
        pieces, pause = script(prompt, body["model"])
        if body.get("continue_final_message"):
            pieces = _tokens(" And this is the continuation.")
        total, count = sum(len(_tokens(message["content"])) for message in body["messages"]), 0
        try:
            if prompt.startswith("slow"):
                for done in range(500, 4000, 250):
                    yield _event(prompt_progress={"total": 4000, "cache": 500, "processed": done, "time_ms": done})
                    await asyncio.sleep(0.06)
            if prompt.startswith("think"):
                for piece in _tokens("First I <b>consider</b> it. Then I know."):
                    yield _event(choices=[{"index": 0, "delta": {"reasoning_content": piece}, "finish_reason": None}])
                    await asyncio.sleep(0.01)
            async for chunk in _chunks(body, pieces, pause):
                count += 'finish_reason": null' in chunk
                yield chunk
                first = count == 5 and not body.get("continue_final_message")
                if prompt.startswith("cut") and first:
                    return
                if prompt.startswith("break") and first:
                    yield _event(error={"message": "the backend failed", "type": "server_error"})
                    return
                if count % 50 == 0 and await request.is_disconnected():
                    self.cancelled += 1
                    return
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        usage = {"prompt_tokens": total, "completion_tokens": count, "total_tokens": total + count}
        if prompt.startswith("fill"):
            usage["total_tokens"] = CONTEXT
        usage["prompt_tokens_details"] = {"cached_tokens": total // 2}
        if prompt.startswith("miss"):
            token = {"id": 5, "text": " llama"}
            miss = {"reason": "input", "position": 30, "token": token, "cached_token": None}
            usage |= {"prompt_tokens": 900, "prefix_miss": miss}
        yield _event(choices=[], usage=usage)
        yield "data: [DONE]\n\n"


async def _chunks(body: dict[str, Any], pieces: list[str], pause: float) -> AsyncIterator[str]:
    begin = time.perf_counter()
    for index, piece in enumerate(pieces):
        choice: dict[str, Any] = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_scores(piece, body["top_logprobs"])]}
        yield _event(choices=[choice])
        wait = begin + (index + 1) * pause - time.perf_counter()
        await asyncio.sleep(max(wait, 0))
    finish = "length" if body["messages"][-1]["content"].startswith("fill") else "stop"
    yield _event(choices=[{"index": 0, "delta": {}, "finish_reason": finish}])


def _scores(token: str, count: int) -> dict[str, Any]:
    names = [token, f" {token.strip()}s", " the", " a", "\n"][:count]
    top = [{"token": name, "logprob": math.log(probability(token, rank))} for rank, name in enumerate(names)]
    return top[0] | {"top_logprobs": top}


def _event(**fields: Any) -> str:
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'system_fingerprint': 'mock-1', **fields})}\n\n"


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": code}}, status)


@contextmanager
def serve(app: Callable[..., Any]) -> Iterator[str]:
    """Runs an ASGI application in a thread; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(5)


if __name__ == "__main__":
    uvicorn.run(Mock().app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8123, log_level="warning")
