"""Messages with roles in JSON: checks of their form, and files of saved conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puna.cli.models import similar_file
from puna.errors import RequestError, StorageError
from puna.files import JSON_LIMIT, atomic_write

ROLES = ("system", "user", "assistant")


def read_messages(value: Any) -> list[dict[str, str]]:
    """Returns the messages of a JSON value: a text of the user, a message with role and content, or a list of these.

    Raises:
        RequestError: the value is none of these.
    """
    if isinstance(value, list):
        return [message for item in value for message in read_messages(item)]
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, dict):
        raise RequestError(f"{json.dumps(value)[:80]} is not a message; it must have the fields role and content")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RequestError(f"the role is {role!r}; it must be one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RequestError(f"the content of the {role} message must be a text, got {json.dumps(content)[:80]}")
    return [{"role": role, "content": content}]


def save(path: Path, messages: list[dict[str, str]]) -> None:
    """Writes a conversation as a JSON list of messages. Replaces an existing file only if it is a saved conversation.

    Raises:
        StorageError: the file exists with other content, or cannot be written.
    """
    if path.exists():
        try:
            load(path)
        except RequestError as exc:
            raise StorageError(f"{path} exists and is not a saved conversation; choose another name") from exc
    with atomic_write(path) as file:
        file.write(json.dumps(messages, ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n")


def load(path: Path) -> list[dict[str, str]]:
    """Reads a conversation: a JSON list of messages, or one message per line.

    Raises:
        RequestError: the file cannot be read or is not a saved conversation.
    """
    try:
        with path.open("rb") as file:
            data = file.read(JSON_LIMIT + 1)
    except OSError as exc:
        question = similar_file(path) if isinstance(exc, FileNotFoundError) else ""
        raise RequestError(f"{path} cannot be read: {exc.strerror}.{question}") from exc
    try:
        if len(data) > JSON_LIMIT:
            raise ValueError(f"more than {JSON_LIMIT} bytes")
        text = data.decode()
        values = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
        return read_messages(values)
    except (ValueError, RecursionError) as exc:
        raise RequestError(f"{path} is not a saved conversation ({exc})") from exc
