"""POST /v1/decisions: probabilities of given answers to questions about a state, which is a text or a conversation.

Each option is scored by the log-likelihood of its complete text and the end of the turn. All sequences begin with the
state, which is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from puna.prompt_scores import PromptLosses
from puna.server.errors import ApiError
from puna.server.generation import Generation, encode
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.fields import HONOURED, INERT, Field, Table
from puna.server.protocol.responses.fields import ITEM
from puna.server.protocol.responses.items import to_messages
from puna.server.protocol.schemas import INT, NUMBER, TEXT, array, optional, record
from puna.server.protocol.scoring.questions import MAX_QUESTIONS, QUESTION, Question, read_question
from puna.server.protocol.scoring.reading import check_length, compute
from puna.server.protocol.types import Array, Map, OneOf, Text
from puna.server.service import Service

_MAX_OPTIONS = 2048
"""Maximum number of options of all questions together; the engine computes one sequence for each option."""

_EXAMPLE = [{"type": "predicate", "instructions": "The text is about animals."}]

DECISION = Table("DecisionRequest", (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
    Field("input", OneOf(Text(), Array(ITEM, 1, "messages")), HONOURED, "the state: a text or items, as for "
          "/v1/responses", required=True, example="The llama lives in the highlands."),
    Field("questions", Array(QUESTION, 1, MAX_QUESTIONS), HONOURED, "the questions about the state", required=True,
          example=_EXAMPLE),
    Field("prompt_cache_key", Text(0, 512), INERT, "the cache finds prefixes by their tokens", example="k"),
    Field("prompt_cache_options", Map(), INERT, "prefixes are kept as long as memory allows", example={"ttl": "30m"}),
    Field("safety_identifier", Text(0, 512), INERT, "identifies the end user", example="u"),
), open=False)  # fmt: skip

_SHARES = {"probability": NUMBER}
_ANSWERS: dict[str, Any] = {"anyOf": [
    record({"type": {"const": "predicate"}, "name": optional(TEXT), "probability": NUMBER}),
    record({
        "type": {"const": "choice"}, "name": optional(TEXT), "choice": {"type": ["string", "boolean"]},
        "confidence": NUMBER, "probabilities": array(record({"value": {"type": ["string", "boolean"]}, **_SHARES})),
    }),
    record({
        "type": {"const": "score"}, "name": optional(TEXT), "score": NUMBER, "confidence": NUMBER,
        "probabilities": array(record({"label": TEXT, "value": INT, **_SHARES})),
    }),
]}  # fmt: skip

_RESPONSE = record({
    "answers": array(_ANSWERS), "model": TEXT,
    "usage": record({
        "input_tokens": INT, "input_tokens_details": record({"cached_tokens": INT, "cache_write_tokens": INT}),
        "output_tokens": INT, "output_tokens_details": record({"reasoning_tokens": INT}), "total_tokens": INT,
    }),
})  # fmt: skip


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()
    add_endpoint(
        routes, service, "/v1/decisions", DECISION, _decide, summary="Answer questions about a state by probabilities",
        response=_RESPONSE,
    )  # fmt: skip
    return routes


async def _decide(call: Call) -> Response:
    values = call.values
    adapter = call.service.adapter(values["model"])
    questions = [read_question(item, index) for index, item in enumerate(values["questions"])]
    count = sum(len(question.options) for question in questions)
    if count > _MAX_OPTIONS:
        message = f"questions have {count} options together; the limit is {_MAX_OPTIONS}. Send several requests"
        raise ApiError(400, message, param="questions", code="invalid_value")
    results = await compute(call, lambda: _sequences(call, questions, adapter), shares_prefix=True)
    likelihoods = [-float(result.values.sum()) for result in results]
    answers, start = [], 0
    for question in questions:
        end = start + len(question.options)
        answers.append(question.answer(likelihoods[start:end]))
        start = end
    return call.json({"answers": answers, "model": values["model"], "usage": _usage(results)})


def _sequences(call: Call, questions: Sequence[Question], adapter: str | None) -> list[PromptLosses]:
    """Returns the sequences to compute: one per option."""
    llm = call.service.llm
    end = [*llm._turn_end_ids][:1] or [*llm._stop_ids][:1]
    longest, results = llm.longest_text(adapter), []
    for question in questions:
        messages = _messages(call.values["input"], question.text)
        context = encode(llm, Generation(messages, adapter=adapter))
        for option in question.options:
            ids = [*llm.tokenizer.encode(option, add_special_tokens=False), *end]
            check_length(len(context) + len(ids), longest, "input")
            results += llm._continuation_losses(context, [ids], adapter)
    return results


def _messages(state: Any, question: str) -> list[dict[str, Any]]:
    """Returns the conversation that an option answers: the state with the question in the last user message."""
    messages = to_messages(state, None)
    last = messages[-1]
    if last["role"] == "user":
        text = f"{last['content']}\n\n{question}" if last["content"] else question
        return [*messages[:-1], {**last, "content": text}]
    return [*messages, {"role": "user", "content": question}]


def _usage(results: Sequence[PromptLosses]) -> dict[str, Any]:
    """Returns the numbers of tokens of all sequences; their common beginning counts once."""
    prompts = [result.request.prompt_ids for result in results]
    first = prompts[0]
    shared = min(
        next((i for i, (a, b) in enumerate(zip(first, ids, strict=False)) if a != b), min(len(first), len(ids)))
        for ids in prompts
    )
    count = shared + sum(len(ids) - shared for ids in prompts)
    return {
        "input_tokens": count, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": count},
        "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": count,
    }  # fmt: skip
