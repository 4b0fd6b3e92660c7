"""The file of `puna serve --warm`: prompts that are read into the prefix cache when the server starts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from puna.async_llm import AsyncLLM
from puna.errors import PunaError, ServerError, show
from puna.files import read_file

_MAX_BYTES = 64_000_000


def warm(llm: AsyncLLM, path: Path) -> int:
    """Reads the prompts of a file into the prefix cache; returns the number of tokens that were read.

    Raises:
        ServerError: the file cannot be read, or a prompt is not valid.
    """
    try:
        return sum(asyncio.run(llm.warm([prompt], tools=tools)) for prompt, tools in read_prompts(path))
    except PunaError as exc:
        text = str(exc).removeprefix(f"{path}: ")
        raise ServerError(f"--warm {path}: {text}; change the file, or start without --warm") from exc


def read_prompts(path: Path) -> list[tuple[Any, Any]]:
    """Returns pairs of a prompt and its tools.

    The file contains one JSON value, or one JSON value per line: a text, a list of messages, or an object with messages
    and tools. A file that is not JSON is one text.

    Raises:
        ServerError: the file cannot be read, or a JSON value is none of these.
    """
    text = read_file(path, ServerError, _MAX_BYTES).decode("utf-8", "replace")
    try:
        items = [json.loads(text)]
    except ValueError:
        try:
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            return [(text, None)]
    return [_prompt(path, item) for item in items]


def _prompt(path: Path, item: Any) -> tuple[Any, Any]:
    tools = None
    if isinstance(item, dict) and "messages" in item:
        item, tools = item["messages"], item.get("tools")
    if isinstance(item, str) or (isinstance(item, list) and item and all(isinstance(part, dict) for part in item)):
        return item, tools
    raise ServerError(
        f"{path} contains {show(item)}; it must contain texts, lists of messages or objects with messages"
    )
