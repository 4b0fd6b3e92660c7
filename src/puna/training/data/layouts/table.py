"""The table of layouts, and the choice of one by the columns of a row.

A layout reads a row as a conversation, a prompt with its completion, or a text. A new layout is a function and a row of
`LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from puna.errors import ConfigError, DataError, show, show_json, suggestion
from puna.training.batch import Source
from puna.training.data.layouts.checks import (
    parse_json_text,
    read_answer,
    read_list,
    read_optional_text,
    read_text,
)
from puna.training.data.layouts.conversation import Conversation, checked, read_messages, read_sharegpt, read_tools
from puna.training.data.readers.rows import Row


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that follows it, without a chat template."""

    prompt: str
    completion: str
    source: Source


@dataclass(frozen=True)
class Text:
    """A text of which everything is learned; `begins` and `ends` are False for parts of a longer text."""

    text: str
    source: Source
    begins: bool = True
    ends: bool = True
    is_continuous: bool = False


Content: TypeAlias = Conversation | Completion | Text
Values: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """One way to write training examples.

    Attributes:
        required: the columns that every row has.
        optional: other columns that are read.
        read: turns the values of a row into its content.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Values, Source], Content]


def _read_chat(values: Values, source: Source) -> Content:
    tools = values.get("tools")
    if tools is None and values.get("functions") is not None:
        tools = [{"type": "function", "function": item} for item in read_list(values["functions"], "functions", source)]
    return read_messages(values["messages"], tools, source)


def _read_sharegpt(values: Values, source: Source) -> Content:
    items = read_list(values["conversations"], "conversations", source)
    if items and all(isinstance(item, Mapping) and "role" in item for item in items):
        return read_messages(items, values.get("tools"), source, "conversations")
    return read_sharegpt(items, values.get("system"), values.get("tools"), source)


def _read_prompt(values: Values, source: Source) -> Content:
    prompt, completion = (_messages_of(values[name]) for name in ("prompt", "completion"))
    if prompt is not None and completion is not None:
        turns = [*prompt, *completion]
        conversation = read_messages(turns, values.get("tools"), source, "prompt + completion")
        weights = [0.0] * len(prompt) + conversation.weights[len(prompt) :]
        return checked(Conversation(conversation.messages, weights, conversation.tools, source))
    for name in ("prompt", "completion"):
        if isinstance(values[name], list):
            raise DataError(
                f"{source}: {name} is {show_json(values[name])}; prompt and completion must both be texts, or "
                "both lists of messages"
            )
    text = read_text(values["prompt"], "prompt", source)
    return Completion(text, read_answer(values["completion"], "completion", source), source)


def _messages_of(value: Any) -> list[Any] | None:
    """Returns a list of messages, also one written as JSON text; None for a text."""
    items = parse_json_text(value)
    is_list = isinstance(items, list) and all(isinstance(item, Mapping) and "role" in item for item in items)
    return items if is_list and (items or items is value) else None


def _read_alpaca(values: Values, source: Source) -> Content:
    system = read_optional_text(values.get("system"), "system", source)
    messages = [{"role": "system", "content": system}] if system else []
    history = values.get("history")
    for index, turn in enumerate([] if history in (None, "") else read_list(history, "history", source)):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise DataError(f"{source}: history[{index}] is {show_json(turn)}; it must be [question, answer]")
        question, answer = turn
        messages.append({"role": "user", "content": read_text(question, f"history[{index}][0]", source)})
        messages.append({"role": "assistant", "content": read_answer(answer, f"history[{index}][1]", source)})
    question = read_text(values["instruction"], "instruction", source)
    if more := read_optional_text(values.get("input"), "input", source):
        question = f"{question}\n{more}"
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": read_answer(values["output"], "output", source)})
    weights = [float(message["role"] == "assistant") for message in messages]
    return Conversation(messages, weights, read_tools(values.get("tools"), source), source)


def _read_text(values: Values, source: Source) -> Content:
    text = read_answer(values["text"], "text", source)
    is_part = isinstance(values.get("begins"), bool) and isinstance(values.get("ends"), bool)
    return Text(text, source, values["begins"], values["ends"], True) if is_part else Text(text, source)


LAYOUTS: dict[str, Layout] = {
    "chat": Layout(("messages",), ("tools", "functions"), _read_chat),
    "sharegpt": Layout(("conversations",), ("system", "tools"), _read_sharegpt),
    "prompt": Layout(("prompt", "completion"), ("tools",), _read_prompt),
    "alpaca": Layout(("instruction", "output"), ("input", "system", "history", "tools"), _read_alpaca),
    "text": Layout(("text",), ("begins", "ends"), _read_text),
}
"""The layouts, in the order in which they are tried."""

_SHOWN = "; ".join(f"{name}: {', '.join(layout.required)}" for name, layout in LAYOUTS.items())


def find_layout(row: Row, name: str = "auto", columns: Mapping[str, str] | None = None) -> str:
    """Returns the name of the layout of a row.

    Args:
        name: the layout, or "auto" to recognise it by the columns.
        columns: names of columns in the data by the names that layouts have.

    Raises:
        ConfigError: there is no layout of this name, or no layout has a column of this name.
        DataError: the row has the columns of no layout.
    """
    if name != "auto" and name not in LAYOUTS:
        raise ConfigError(f"format is {show(name)}{suggestion(name, LAYOUTS)}; it must be auto or {', '.join(LAYOUTS)}")
    known = {column for layout in LAYOUTS.values() for column in (*layout.required, *layout.optional)}
    for column in columns or {}:
        if column not in known:
            raise ConfigError(
                f"columns names {show(column)}{suggestion(column, known)}; the columns that are read are "
                f"{', '.join(sorted(known))}"
            )
    names = mapped(row, columns).keys()
    candidates = [name] if name != "auto" else list(LAYOUTS)
    for candidate in candidates:
        layout = LAYOUTS[candidate]
        uses_mapped = set(columns or {}) <= {*layout.required, *layout.optional}
        if names >= set(layout.required) and (uses_mapped or name != "auto"):
            return candidate
    raise DataError(f"{row.source}: {_missing(row, candidates)}")


def read_row(row: Row, layout: str, columns: Mapping[str, str] | None) -> Content:
    """Returns the content of a row; raises DataError."""
    values = mapped(row, columns)
    missing = [name for name in LAYOUTS[layout].required if name not in values]
    if missing:
        raise DataError(
            f"{row.source}: the row has no {' and no '.join(missing)}, unlike the first row; its columns are "
            f"{_names(row)}"
        )
    return LAYOUTS[layout].read(values, row.source)


def mapped(row: Row, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Returns the values of a row by the names that layouts have.

    Raises:
        DataError: the row lacks a column that `columns` names.
    """
    values = dict(row.values)
    for name, column in (columns or {}).items():
        if column not in row.values:
            raise DataError(
                f"{row.source}: columns names {show(column)} for {name}, but the row has no such column"
                f"{suggestion(column, row.values)}; it has {_names(row)}"
            )
        values[name] = row.values[column]
    return values


def _missing(row: Row, candidates: list[str]) -> str:
    names = set(row.values)
    if {"chosen", "rejected", "preferred_output"} & names:
        return (
            f"the row is a preference ({_names(row)}), but fine-tuning needs one answer; map the better one, for "
            'example columns = {"completion": "chosen"}'
        )
    remedy = f"map your columns to these, for example columns = {{{_example(row, candidates)}}}"
    if len(candidates) == 1:
        return f"the format {candidates[0]} needs {' and '.join(LAYOUTS[candidates[0]].required)}; the row has " + (
            f"{_names(row)}; {remedy}"
        )
    return (
        f"no format has the columns of this row, {_names(row)}; formats and their columns are {_SHOWN}; {remedy}, or "
        "use the task classify if a column has the labels of texts"
    )


def _example(row: Row, candidates: list[str]) -> str:
    needed = LAYOUTS[candidates[0] if len(candidates) == 1 else "prompt"].required
    given = [*map(str, row.values), "...", "..."]
    return ", ".join(f'"{name}": "{column}"' for name, column in zip(needed, given, strict=False))


def _names(row: Row) -> str:
    return ", ".join(map(show, list(row.values)[:20])) or "no columns"
