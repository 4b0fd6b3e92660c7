"""POST /v1/completions: continues texts or token ids; log-probabilities have OpenAI's older form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from puna.engine import TokenLogprobs
from puna.server.errors import ApiError
from puna.server.events import EventStream
from puna.server.generation import Generation, Running
from puna.server.protocol.answer_format import read_format
from puna.server.protocol.choices import (
    DONE,
    Choice,
    ChunkHead,
    StreamUsage,
    call_usage,
    collect,
    finish_reason,
    head_of,
    prompt_logprobs,
    shared_arguments,
    start,
)
from puna.server.protocol.completions.fields import COMPLETION
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.logprobs import token_text
from puna.server.protocol.sampling import read_options
from puna.server.protocol.schemas import TEXT_COMPLETION
from puna.server.service import Service
from puna.server.updates import Finished, TextDelta, Update


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()
    add_endpoint(
        routes, service, "/v1/completions", COMPLETION, _answer, summary="Continue a text", response=TEXT_COMPLETION,
        streams=True,
    )  # fmt: skip
    return routes


async def _answer(call: Call) -> Response:
    values = call.values
    generation = _read_generation(call)
    running = await start(call, generation)
    head = head_of(call, generation, "cmpl", "text_completion")
    writer = _Writer(call, running, [generation.prompt, *generation.more_prompts])
    if values["stream"]:
        chunks = _chunks(call, running, head, writer)
        return EventStream(chunks, call.service.settings, cancel=running.cancel, headers=call.headers)
    choices = await collect(running, values["n"] * len(running.prompts))

    def document() -> dict[str, Any]:
        items = [writer.complete(index, choice) for index, choice in enumerate(choices)]
        return {**head, "choices": items, "usage": call_usage(call, running)}

    is_long = values["logprobs"] is not None or values["prompt_logprobs"] is not None
    return await call.long_json(document) if is_long else call.json(document())


def _read_generation(call: Call) -> Generation:
    """Returns the generation for a request."""
    values, service = call.values, call.service
    adapter = service.adapter(values["model"])
    options: dict[str, Any] = {**read_options(values, service), **read_format(values)}
    options["max_tokens"] = values["max_tokens"]
    tops = [values["logprobs"] if values["echo"] else None, values["prompt_logprobs"]]
    if values["logprobs"] is not None:
        options["logprobs"] = values["logprobs"]
    if any(top is not None for top in tops):
        options["prompt_logprobs"] = max(top for top in tops if top is not None)
    best_of = values["best_of"]
    if best_of is not None and best_of < values["n"]:
        raise _contradiction("best_of", f"best_of is {best_of}, but n is {values['n']}; best_of must be at least n")
    if best_of is not None and best_of > values["n"] and values["stream"]:
        raise _contradiction("best_of", "the best answers are known only at the end; omit stream or best_of")
    prompts = _prompts(values["prompt"])
    return Generation(
        prompts[0], more_prompts=prompts[1:], options=options, adapter=adapter,  # type: ignore[arg-type]
        best_of=best_of if best_of != values["n"] else None, **shared_arguments(values),
    )  # fmt: skip


def _prompts(prompt: Any) -> list[Any]:
    """Returns the prompts in the field, which is a text, token ids, or an array of texts or of arrays of token ids."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _contradiction(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


class _Writer:
    """Writes answers in OpenAI's form."""

    def __init__(self, call: Call, running: Running, prompts: Sequence[Any]) -> None:
        self._call = call
        self._running = running
        self._tokenizer = call.service.llm.tokenizer
        self._special = frozenset(self._tokenizer.all_special_ids)
        self._prompts = prompts
        self._offsets: dict[int, int] = {}

    def complete(self, index: int, choice: Choice) -> dict[str, Any]:
        """Returns a complete answer."""
        return self._item(index, choice.text, choice.ids, choice.tokens, finish_reason(choice.reason))

    def has_begun(self, index: int) -> bool:
        """Returns whether a part of an answer was returned."""
        return index in self._offsets

    def part(self, update: TextDelta) -> dict[str, Any]:
        """Returns a part of an answer."""
        return self._item(update.choice, update.text, update.ids, update.tokens, None)

    def end(self, update: Finished) -> dict[str, Any]:
        """Returns the end of an answer."""
        return self._item(update.choice, "", (), (), finish_reason(update.reason))

    def _item(
        self, index: int, text: str, ids: Sequence[int], tokens: Sequence[TokenLogprobs], reason: str | None
    ) -> dict[str, Any]:
        values, prompt = self._call.values, index // self._call.values["n"]
        is_first = index not in self._offsets
        rows: list[TokenLogprobs | int] = list(tokens)
        echoed = ""
        if is_first:
            self._offsets[index] = 0
            if values["echo"]:
                echoed = self._prompt_text(prompt)
                first_id = self._running.prompts[prompt][0]
                rows = [*(row or first_id for row in self._running.prompt_logprobs(prompt) or ()), *rows]
        item: dict[str, Any] = {"index": index, "text": echoed + text, "logprobs": None, "finish_reason": reason}
        if values["logprobs"] is not None:
            item["logprobs"] = self._logprobs(index, rows)
        if is_first and values["prompt_logprobs"] is not None:
            item["prompt_logprobs"] = prompt_logprobs(self._running.prompt_logprobs(prompt), self._call.service)
        if values["return_token_ids"]:
            item["token_ids"] = ids
            if is_first:
                item["prompt_token_ids"] = self._running.prompts[prompt]
        return item

    def _prompt_text(self, index: int) -> str:
        """Returns the text of a prompt."""
        prompt = self._prompts[index]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(list(prompt), skip_special_tokens=False)

    def _logprobs(self, index: int, rows: Sequence[TokenLogprobs | int]) -> dict[str, Any]:
        """Returns log-probabilities. The first token of a prompt has none, so its row is only an id."""
        texts, chosen, tops, offsets = [], [], [], []
        for row in rows:
            text = token_text(row if isinstance(row, int) else row.token, self._tokenizer)
            texts.append(text)
            offsets.append(self._offsets[index])
            self._offsets[index] += self._width(index, row, text)
            chosen.append(None if isinstance(row, int) else row.logprob)
            tops.append(None if isinstance(row, int) else self._top(row))
        return {"tokens": texts, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets}

    def _width(self, index: int, row: TokenLogprobs | int, text: str) -> int:
        """Returns the number of characters of a token in the text of the answer, which may begin with the prompt."""
        prompt = self._prompts[index // self._call.values["n"]]
        if not isinstance(prompt, str) or not self._call.values["echo"]:
            return len(text)
        if (row if isinstance(row, int) else row.token) in self._special:
            return 0  # the text does not contain special tokens, such as the BOS token that the tokenizer adds
        # Some tokenizers add a space before the text.
        adds_space = self._offsets[index] == 0 and text.startswith(" ") and not prompt.startswith(" ")
        return len(text) - adds_space

    def _top(self, row: TokenLogprobs) -> dict[str, float]:
        """Returns the log-probabilities of the likely and the chosen tokens by text; for equal texts, the highest."""
        count = self._call.values["logprobs"]
        pairs = [*row.top[:count], (row.token, row.logprob)]
        result: dict[str, float] = {}
        for token, logprob in pairs:
            result.setdefault(token_text(token, self._tokenizer), logprob)
        return result


async def _chunks(call: Call, running: Running, head: Mapping[str, Any], writer: _Writer) -> AsyncIterator[bytes]:
    usage, chunk_head = StreamUsage(call, running), ChunkHead(head)
    others = call.values["logprobs"] is not None or call.values["return_token_ids"] or usage.is_in_every_chunk

    def document(update: TextDelta | Finished) -> dict[str, Any]:
        item = writer.part(update) if isinstance(update, TextDelta) else writer.end(update)
        return {"choices": [item], **usage.fields()}

    def encode(update: Update) -> bytes:
        if not isinstance(update, (TextDelta, Finished)):
            return b""
        if others or isinstance(update, Finished) or not writer.has_begun(update.choice):
            return chunk_head.event(document(update))
        return chunk_head.text_event(update.choice, update.text, lambda text: document(replace(update, text=text)))

    async for chunks in running.encoded(encode):
        yield chunks
    if usage.ends_stream:
        yield chunk_head.event({"choices": [], **usage.fields(is_last=True)})
    yield DONE
