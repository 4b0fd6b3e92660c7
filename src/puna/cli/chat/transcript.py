"""Messages with roles in JSON: checks of their form, and files of saved conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puna.cli.models import similar_file
from puna.errors import RequestError, StorageError, show
from puna.files import JSON_LIMIT, atomic_write
from puna.prompts import read_conversations

ROLES = ("system", "user", "assistant", "tool")


def read_messages(value: object) -> list[dict[str, Any]]:
    """Returns the messages of a JSON value: a text of the user, a message as in `LLM.chat`, or a list of them.

    Raises:
        RequestError: the value has another form.
    """
    items = value if isinstance(value, list) else [value]
    messages = [{"role": "user", "content": item} if isinstance(item, str) else item for item in items]
    conversations, several = read_conversations(messages)
    if several:
        raise RequestError("the messages are in a list of lists; give the messages of one conversation")
    for message in conversations[0]:
        if message["role"] not in ROLES:
            raise RequestError(f"the role is {show(message['role'])}; it must be one of {', '.join(ROLES)}")
    return conversations[0]


def save(path: Path, messages: list[dict[str, Any]]) -> None:
    """Writes a conversation as a JSON list of messages. Replaces an existing file only if it is a saved conversation.

    Raises:
        StorageError: the file exists with other content, or cannot be written.
    """
    if not path.parent.is_dir():
        raise StorageError(f"{path} cannot be written: the folder {path.parent} does not exist; choose another folder")
    if path.exists():
        try:
            load(path)
        except RequestError as exc:
            raise StorageError(f"{path} exists and is not a saved conversation; choose another name") from exc
    with atomic_write(path) as file:
        file.write(json.dumps(messages, ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n")


def load(path: Path) -> list[dict[str, Any]]:
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
        return read_messages(values) if values else []
    except (ValueError, RecursionError) as exc:
        reason = f" ({exc})" if isinstance(exc, RequestError) else ""
        raise RequestError(f"{path} is not a saved conversation{reason}") from exc
