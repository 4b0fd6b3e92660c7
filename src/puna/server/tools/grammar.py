"""The grammar of an answer that may call functions, in llguidance's variant of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from puna.grammars.library import special_name
from puna.server.tools.formats import ID, ToolFormat
from puna.server.tools.toolset import Function, ToolSet

_ANNOTATIONS = frozenset(("title", "description", "$schema", "$id", "id", "default", "examples", "$comment", "strict"))

_OBJECT = frozenset(("type", "properties", "required", "additionalProperties", "$defs", "definitions")) | _ANNOTATIONS
"""Keywords of a schema whose properties do not depend on each other."""

_ANY_TEXT = r"/(?s:.*)/"


def tool_grammar(tools: ToolSet, form: ToolFormat, text: str | Mapping[str, Any] | None = None) -> str:
    """Returns the grammar of answers.

    Args:
        text: the right side of a rule for answers without calls, or their JSON schema; None allows any text, and also
            text before calls.
    """
    rules = [*_calls(tools, form)] if tools.callable else []
    if tools.mode == "required":
        return "\n".join(["start: calls", *rules])
    if text is None:
        return "\n".join([*_free_text(tools, form, bool(rules)), *rules])
    if isinstance(text, Mapping):
        keys = _object_keys(form)
        if rules and keys is not None:
            variants = [_identified("answer", text), *(_call_schema(item, keys) for item in tools.callable)]
            text, rules = json_rule({"anyOf": variants}, form.item_separator, form.key_separator), []
        else:
            text = json_rule(text)
    return "\n".join(["start: answer | calls" if rules else "start: answer", f"answer: {text}", *rules])


def _object_keys(form: ToolFormat) -> tuple[str, str] | None:
    """Returns the keys of the name and the arguments, if a call is only a JSON object; else None.

    A lexer cannot distinguish the beginnings of such a call and of other JSON, but one JSON schema can describe both.
    """
    if form.marker is not None or form.style != "json" or form.special:
        return None
    try:
        call = json.loads(f"{form.before}{form.between}{{}}{form.after}")
    except ValueError:
        return None
    keys = tuple(call) if isinstance(call, dict) else ()
    return (keys[0], keys[1]) if len(keys) == 2 else None


def _call_schema(function: Function, keys: tuple[str, str]) -> dict[str, Any]:
    """Returns the JSON schema of a call of a function."""
    arguments = _identified(function.name, arguments_schema(function.parameters))
    properties = {keys[0]: {"const": function.name}, keys[1]: arguments}
    return {"type": "object", "properties": properties, "required": [*keys], "additionalProperties": False}


def _identified(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a schema with an identifier, so that its references remain valid inside another schema."""
    return {"$id": f"json-schema:{name.encode().hex()}", **schema}


def json_rule(schema: Mapping[str, Any], item_separator: str = ",", key_separator: str = ":") -> str:
    """Returns the right side of a rule for JSON that is valid under a schema."""
    options = {
        "whitespace_flexible": False, "item_separator": item_separator, "key_separator": key_separator,
        "lenient": False, "coerce_one_of": False,
    }  # fmt: skip
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"


def _free_text(tools: ToolSet, form: ToolFormat, calls: bool) -> list[str]:
    """Returns the rules of an answer that begins with any text, which does not look like a call."""
    marker = form.marker
    if marker is None:
        forbidden = _beginning(tools, form)
        text = f"TEXT: {_ANY_TEXT} & ~/(?s:\\s*{forbidden}.*)/"
        return [f"start: TEXT{' | calls' if calls else ''}", text]
    escaped = _escaped(marker)
    text = f"TEXT: {_ANY_TEXT} & ~/(?s:.*{escaped}.*)/"
    if not calls:
        return ["start: TEXT", text]
    if marker in form.special:
        return ["start: TEXT? calls | TEXT", text]
    lead = f"lead[lazy]: /(?s:.*){escaped}/"
    return ["start: TEXT | lead after_marker", text, lead]


def _beginning(tools: ToolSet, form: ToolFormat) -> str:
    """Returns an expression for the beginning of calls without a marker. Spaces may be missing or more."""
    parts = form.before.split()
    expression = r"\s*".join(
        _escaped(piece) for part in parts for piece in re.findall(r"\w+|\W", part) if piece != '"' or len(parts) > 1
    )
    if form.style == "python" or not re.search(r"\w", form.before):
        names = "|".join(_escaped(item.name) for item in tools.functions)
        return rf"{expression}\s*(?:{names})\s*{_escaped(form.between.strip())}"
    return expression


def _calls(tools: ToolSet, form: ToolFormat) -> list[str]:
    """Returns the rules of calls, and of the text after a marker.

    The text before and after the first name is one string: the lexer would otherwise prefer the longer free text.
    """
    functions, special = tools.callable, form.special
    rules = []
    names = {"calls": form.before}
    if form.marker is not None and form.marker not in special:
        names["after_marker"] = form.before.removeprefix(form.marker)
    call = " | ".join(
        f"{_literal(item.name + form.between, special)} arguments_{i}" for i, item in enumerate(functions)
    )
    several = tools.parallel and form.separator is not None
    following = f"({_literal(form.separator or '', special)} call)* " if several else ""
    for name, before in names.items():
        first = [
            f"{_literal(before + item.name + form.between, special)} arguments_{index}"
            for index, item in enumerate(functions)
        ]
        optional = f"{special_name(form.optional)}? " if form.optional is not None else ""
        rules.append(f"{name}: {optional}({' | '.join(first)}) {following}{_literal(form.after, special)}")
    rules += [f"call: {call}"] if several else []
    for index, item in enumerate(functions):
        if form.style == "python":
            rules += _keywords(index, item)
        else:
            arguments = json_rule(arguments_schema(item.parameters), form.item_separator, form.key_separator)
            rules.append(f"arguments_{index}: {arguments}")
    return rules


def arguments_schema(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the schema of a function's arguments: an object, without arguments that the schema does not name."""
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = {"type": "object", **parameters}
    if "additionalProperties" not in schema and schema.keys() <= _OBJECT and schema.get("properties"):
        schema["additionalProperties"] = False
    return schema


def _keywords(index: int, function: Function) -> list[str]:
    """Returns the rules of Python's keyword arguments. Those that depend on each other are written as **{...}."""
    name, schema = f"arguments_{index}", arguments_schema(function.parameters)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    separate = schema.keys() <= _OBJECT and not schema.get("additionalProperties")
    if not separate or not all(key.isidentifier() for key in properties) or not set(required) <= properties.keys():
        return [f'{name}: "**" {json_rule(schema, ", ", ": ")}']
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules, items = [], []
    for number, (key, value) in enumerate(properties.items()):
        item = f"{name}_{number}"
        rules.append(f"{item}: {_quoted(key + '=')} ({_python_value({**value, **shared})})")
        items.append((item, key in required))
    rest = [f'", " {item}' if needed else f'(", " {item})?' for item, needed in items]
    choices = []
    for number, (item, needed) in enumerate(items):
        choices.append(" ".join([item, *rest[number + 1 :]]))
        if needed:
            break
    else:
        choices.append('""')
    return [f"{name}: {' | '.join(choices)}", *rules]


def _python_value(schema: Mapping[str, Any]) -> str:
    """Returns the right side of a rule for a value: JSON, but True, False and None as in Python."""
    kind = schema.get("type")
    if kind == "boolean" and "enum" not in schema and "const" not in schema:
        return '"True" | "False"'
    if kind == "null":
        return '"None"'
    rule = json_rule(schema, ", ", ": ")
    nullable = isinstance(kind, list) and "null" in kind and "enum" not in schema and "const" not in schema
    return f'{rule} | "None"' if nullable else rule


def _literal(text: str, special: Sequence[str]) -> str:
    """Returns a text of a format as parts of a rule: strings, special tokens and identifiers."""
    pattern = "|".join([re.escape(ID), *map(re.escape, special)])
    parts = []
    for piece in re.split(f"({pattern})", text):
        if piece == ID:
            parts.append("/[a-zA-Z0-9]{9}/")
        elif piece in special:
            parts.append(special_name(piece))
        elif piece:
            parts.append(_quoted(piece))
    return " ".join(parts) or '""'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Returns an expression that matches only `text`, in the syntax of the Rust crate regex."""
    return re.sub(r"[^0-9A-Za-z_]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)
