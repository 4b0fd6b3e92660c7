"""`compute`: runs texts for an endpoint, with a separate prefix cache for each caller; checks of the texts' lengths."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from puna.prompt_scores import PromptResult
from puna.prompts import split_inputs
from puna.server.errors import ApiError
from puna.server.guard.exchange import current_exchange
from puna.server.protocol.endpoint import Call

Result = TypeVar("Result", bound=PromptResult)


async def compute(call: Call, make: Callable[[], Sequence[Result]], *, shares_prefix: bool = False) -> Sequence[Result]:
    """Waits until the engine has computed results, and returns them.

    Args:
        make: encodes texts and returns the unfinished results; runs in a thread.
        shares_prefix: whether all texts begin with the same long text. The first text is then computed before the
            others, which find their beginning in the prefix cache.

    Raises:
        PunaError: an input is not valid.
    """
    salt = current_exchange().caller.namespace("")
    results = await asyncio.to_thread(make)
    for result in results:
        result.request = replace(result.request, salt=salt)
    runner = call.service.llm._runner
    first = 1 if shares_prefix else 0
    for part in (results[:first], results[first:]):
        if part:
            await runner.submit(part).wait_async()
    return results


def encoded(call: Call, inputs: Any, param: str, adapter: str | None) -> list[tuple[int, ...]]:
    """Returns the token ids of inputs.

    Raises:
        ApiError: 400, if an input has no tokens, or exceeds the context.
    """
    llm = call.service.llm
    longest = llm.longest_text(adapter)
    result = []
    for index, item in enumerate(split_inputs(inputs)):
        ids = llm._encode(item)
        if not ids:
            raise ApiError(400, f"{param}[{index}] has no tokens", param=param, code="invalid_value")
        check_length(len(ids), longest, param)
        result.append(ids)
    return result


def check_length(count: int, longest: int, param: str) -> None:
    """Raises ApiError 400 for more tokens than fit in the context."""
    if count > longest:
        message = f"{param} has a text of {count} tokens, but the model's context is {longest} tokens; shorten the text"
        raise ApiError(400, message, param=param, code="context_length_exceeded")


def usage_of(results: Sequence[PromptResult]) -> dict[str, int]:
    """Returns the numbers of tokens in OpenAI's form."""
    count = sum(len(result.request.prompt_ids) for result in results)
    return {"prompt_tokens": count, "total_tokens": count}
