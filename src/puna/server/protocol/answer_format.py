"""The fields that prescribe the form of an answer: `response_format` and `structured_outputs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.options import Options
from puna.server.errors import ApiError, unsupported
from puna.server.protocol.fields import HONOURED, REFUSED, Field, Table, Values
from puna.server.protocol.tagged import Tagged
from puna.server.protocol.types import Any_, Array, Boolean, Map, OneOf, Text

_SCHEMA = Table("JsonSchemaFormat", (
    Field("name", Text(1, 64), HONOURED, "the name of the schema", required=True),
    Field("schema", Map(), HONOURED, "the JSON schema", required=True),
    Field("strict", Boolean(), HONOURED, "answers always follow the schema"),
    Field("description", Text(), HONOURED, "what the answer is for"),
), open=False)  # fmt: skip

RESPONSE_FORMAT = Tagged({
    "text": Table("TextFormat", (), open=False),
    "json_object": Table("JsonObjectFormat", (
        Field("schema", Any_(), REFUSED, 'write {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}'),
    ), open=False),
    "json_schema": Table("JsonSchemaResponseFormat", (
        Field("json_schema", _SCHEMA, HONOURED, "the schema of the answer", required=True),
        Field("schema", Any_(), REFUSED, 'write {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}'),
    ), open=False),
})  # fmt: skip

STRUCTURED_OUTPUTS = Table("StructuredOutputs", (
    Field("json", OneOf(Map(), Text(1)), HONOURED, "JSON schema of the answer, as an object or as a text"),
    Field("regex", Text(1, "rule_characters"), HONOURED, "regular expression that the answer matches"),
    Field("choice", Array(Text(1), 1, "token_ids"), HONOURED, "the possible answers"),
    Field("grammar", Text(1, "rule_characters"), HONOURED, "grammar of the answer, in llguidance's variant of Lark"),
    Field("json_object", Boolean(), HONOURED, "the answer is any JSON object"),
), open=False)  # fmt: skip

_USE = "use structured_outputs"

FORMATS = (
    Field("response_format", RESPONSE_FORMAT, HONOURED, "the form of the answer: text, a JSON object, or JSON that "
          "follows a schema", example={"type": "json_object"}),
    Field("structured_outputs", STRUCTURED_OUTPUTS, HONOURED, "a schema, a regular expression, a choice of texts or a "
          "grammar that the answer follows", example={"regex": "a|b"}),
    *(Field(name, Any_(), REFUSED, f"{_USE}: {{{use}}}") for name, use in (
        ("guided_json", '"json": ...'), ("guided_regex", '"regex": ...'), ("guided_choice", '"choice": ...'),
        ("guided_grammar", '"grammar": ...'), ("guided_decoding_backend", '"json": ...'),
        ("guided_whitespace_pattern", '"regex": ...'),
    )),
)  # fmt: skip
"""Fields of chat and completions."""


def read_format(values: Values) -> Options:
    """Returns the options of `LLM` for the form of the answer.

    Raises:
        ApiError: 400, if several forms are given.
    """
    options: list[tuple[str, Any]] = []
    response_format: Mapping[str, Any] = values["response_format"] or {}
    if response_format.get("type") == "json_object":
        options.append(("json_schema", True))
    elif response_format.get("type") == "json_schema":
        options.append(("json_schema", response_format["json_schema"]["schema"]))
    for name, value in (values["structured_outputs"] or {}).items():
        if value is None or value is False:
            continue
        options.append(("json_schema" if name in ("json", "json_object") else name, value))
    if values["structured_outputs"] == dict.fromkeys(row.name for row in STRUCTURED_OUTPUTS.fields):
        raise ApiError(400, "structured_outputs is empty; give json, regex, choice or grammar",
                       param="structured_outputs", code="invalid_value")  # fmt: skip
    if len(options) > 1:
        raise unsupported("structured_outputs", "the request prescribes several forms of the answer; give one of "
                          "response_format and the fields of structured_outputs")  # fmt: skip
    return dict(options)  # type: ignore[return-value]
