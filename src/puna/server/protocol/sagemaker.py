"""GET /ping and POST /invocations: the interface of SageMaker's containers.

A body with `inputs` has the shape of Text Generation Inference. A body with `messages` or `prompt` is a request of
OpenAI's chat or completions API, which may omit the field `model` for the base model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.answer import Completion
from puna.options import Options
from puna.server.errors import ApiError, to_json
from puna.server.events import EventStream, data
from puna.server.generation import Generation, Running
from puna.server.protocol.endpoint import Call, error_responses, json_response, read_document, respond, send_result
from puna.server.protocol.fields import HONOURED, REFUSED, VALUES, Field, Table, Values
from puna.server.protocol.schemas import CHAT_COMPLETION, TEXT, TEXT_COMPLETION, array, record
from puna.server.protocol.types import Any_, Array, Boolean, Integer, Number, Reader, Text
from puna.server.service import Service
from puna.server.updates import TextDelta

_FORWARDED = {"messages": "/v1/chat/completions", "prompt": "/v1/completions"}

_DEFAULT_TOKENS = 100
"""Default of max_new_tokens in Text Generation Inference."""

PARAMETERS = Table("SageMakerParameters", (
    Field("max_new_tokens", Integer(1), HONOURED, "maximum number of tokens of the answer", _DEFAULT_TOKENS, example=5),
    Field("do_sample", Boolean(), HONOURED, "choose tokens at random; false chooses the most likely tokens. The "
          "default is true if temperature, top_k, top_p or typical_p is set", example=True),
    Field("temperature", Number(0, 100, above=True), HONOURED, "divides the logits", example=0.5),
    Field("top_k", Integer(0, 2**31), HONOURED, "choose from the k most likely tokens", example=5),
    Field("top_p", Number(0, 1, above=True), HONOURED, "choose from the smallest set of tokens with this total "
          "probability", example=0.9),
    Field("typical_p", Number(0, 1, above=True), HONOURED, "choose from the tokens of typical probability",
          example=0.9),
    Field("repetition_penalty", Number(0, 1000, above=True), HONOURED, "above 1, tokens that occurred before become "
          "less likely", example=1.1),
    Field("frequency_penalty", Number(-2, 2), HONOURED, "subtracted from a token's logit for each occurrence of the "
          "token in the answer", example=0.5),
    Field("seed", Integer(0), HONOURED, "makes sampling repeatable, bit for bit", example=7),
    Field("stop", Array(Text(1, "stop_characters"), 0, "stops"), HONOURED, "stop strings: the answer ends after the "
          "first one that occurs", example=["\n"]),
    Field("best_of", Integer(1, "n"), HONOURED, "generate this number of answers and return the best", example=2),
    Field("return_full_text", Boolean(), HONOURED, "begin the returned text with inputs", False, example=True),
    Field("details", Boolean(), HONOURED, "return the tokens, and why the answer ended", False, example=True),
    Field("watermark", Boolean(), VALUES, "answers have no watermark", accepted=(False,), example=False),
    Field("truncate", Any_(), REFUSED, "inputs are never truncated; send shorter ones"),
    Field("grammar", Any_(), REFUSED, "send messages and response_format instead of inputs"),
    Field("top_n_tokens", Any_(), REFUSED, "send a prompt and logprobs instead of inputs"),
    Field("decoder_input_details", Any_(), REFUSED, "send a prompt, logprobs and echo instead of inputs"),
), open=False)  # fmt: skip

FIELDS = Table("SageMakerRequest", (
    Field("inputs", Text(1), HONOURED, "the text to continue", required=True, example="the llama"),
    Field("parameters", PARAMETERS, HONOURED, "options of the answer"),
    Field("stream", Boolean(), HONOURED, "send the answer as server-sent events while it is generated", False,
          example=False),
    Field("model", Text(1), HONOURED, "name of the model or of an adapter; the default is the base model"),
), open=False)  # fmt: skip

_RESPONSE = {"anyOf": [
    array(record({"generated_text": TEXT}, {"details": {"type": "object"}})), CHAT_COMPLETION, TEXT_COMPLETION,
]}  # fmt: skip


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter()

    @routes.get("/ping", summary="Whether requests are accepted, for SageMaker", response_class=Response)
    async def ping() -> Response:
        is_ready = service.state == "ready"
        return json_response({"status": service.state}, 200 if is_ready else 503, {} if is_ready else _RETRY)

    async def invocations(request: Request) -> Response:
        return _Invocation(service, request)

    schema = {"anyOf": [FIELDS.schema(service.settings.limits), {"type": "object"}]}
    routes.add_api_route(
        "/invocations", invocations, methods=["POST"], summary="Continue a text, or answer messages, for SageMaker",
        response_class=Response, responses={200: {"description": "the answer", "content": {
            "application/json": {"schema": _RESPONSE}, "text/event-stream": {}}}, **error_responses("/invocations")},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )  # fmt: skip
    return routes


_RETRY = {"Retry-After": "2"}


class _Invocation(Response):
    """Reads the body, and forwards the request to the endpoint for its shape."""

    def __init__(self, service: Service, request: Request) -> None:
        self.background = None
        self._service, self._request = service, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        await send_result(self._choose(scope, receive), scope, receive, send)

    async def _choose(self, scope: Scope, receive: Receive) -> Response:
        service = self._service
        service.check_ready()
        document, _ = await read_document(self._request, service)
        shapes = [name for name in ("inputs", *_FORWARDED) if document.get(name) is not None]
        if len(shapes) != 1:
            raise ApiError(
                400, "the body must have exactly one of inputs, messages and prompt", param="inputs",
                code="missing_required_parameter",
            )  # fmt: skip
        if shapes[0] == "inputs":
            return respond(service, FIELDS, _generate, Request(scope, _replay(document, receive)))
        return _Forwarded(self._request.app.router, _FORWARDED[shapes[0]], {"model": service.name, **document})


class _Forwarded(Response):
    """The response of another path of this server to a JSON document."""

    def __init__(self, application: ASGIApp, path: str, document: dict[str, Any]) -> None:
        self.background = None
        self._parts = application, path, document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        application, path, document = self._parts
        await application({**scope, "path": path, "raw_path": path.encode()}, _replay(document, receive), send)


def _replay(document: dict[str, Any], receive: Receive) -> Receive:
    """Returns a `receive` that first returns a document as the body, and then the client's messages."""
    messages: list[Message] = [{"type": "http.request", "body": to_json(document), "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _generate(call: Call) -> Response:
    values, service = call.values, call.service
    parameters = values["parameters"] or PARAMETERS.read("parameters", {}, Reader(service.settings.limits))
    adapter = service.adapter(values["model"] or service.name)
    generation = Generation(
        values["inputs"], _options(parameters), adapter, best_of=parameters["best_of"], include_stop=True
    )
    if values["stream"] and (parameters["best_of"] or 1) > 1:
        raise ApiError(400, "parameters.best_of above 1 is not possible in a stream; omit best_of or stream",
                       param="parameters.best_of", code="invalid_value")  # fmt: skip
    running = await service.start(generation)
    prefix = values["inputs"] if parameters["return_full_text"] else ""
    if values["stream"]:
        return EventStream(_events(running, prefix), service.settings, cancel=running.cancel, headers=call.headers)
    async for _ in running:
        pass
    (completion,) = running.completions
    answer: dict[str, Any] = {"generated_text": prefix + completion.text}
    if parameters["details"]:
        decode = service.llm.tokenizer.decode
        tokens = [
            {"id": item.token, "text": decode([item.token]), "logprob": item.logprob, "special": False}
            for item in completion.logprobs or ()
        ]
        answer["details"] = {**_details(completion), "prefill": [], "tokens": tokens, "seed": parameters["seed"]}
    return call.json([answer])


def _options(parameters: Values) -> Options:
    """Returns the options of `LLM` for the parameters."""
    names = ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "frequency_penalty", "seed", "stop")
    options: Any = {name: parameters[name] for name in names if parameters[name] is not None}
    if not options.get("stop"):
        options.pop("stop", None)
    has_sampling = any(name in options for name in ("temperature", "top_k", "top_p", "typical_p"))
    is_random = has_sampling if parameters["do_sample"] is None else parameters["do_sample"]
    options["temperature"] = options.get("temperature", 1.0) if is_random else 0.0
    options["max_tokens"] = parameters["max_new_tokens"]
    options["logprobs"] = 0
    return cast(Options, options)


def _details(completion: Completion) -> dict[str, Any]:
    reason = "stop_sequence" if isinstance(completion.stop, str) else "eos_token"
    reason = "length" if completion.finish_reason == "length" else reason
    return {"finish_reason": reason, "generated_tokens": len(completion.ids)}


async def _events(running: Running, prefix: str) -> AsyncIterator[bytes]:
    """Yields an event for each part of the text; the last event also has the complete text."""
    index, last = 0, None
    async for update in running:
        if not isinstance(update, TextDelta) or not update.text:
            continue
        if last is not None:
            index += 1
            yield data({"index": index, "token": last, "generated_text": None, "details": None})
        token = update.tokens[-1] if update.tokens else None
        last = {
            "id": token.token if token else update.ids[-1] if update.ids else None,
            "text": update.text,
            "logprob": token.logprob if token else None,
            "special": False,
        }
    (completion,) = running.completions
    last = last or {"id": None, "text": "", "logprob": None, "special": True}
    yield data({
        "index": index + 1, "token": last, "generated_text": prefix + completion.text,
        "details": {**_details(completion), "seed": None},
    })  # fmt: skip
