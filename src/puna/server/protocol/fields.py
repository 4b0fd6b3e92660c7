"""Tables of fields: one row per field of a request. They read requests, and generate schemas and documentation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from puna.errors import show, show_json, suggestion
from puna.server.errors import ApiError, unsupported
from puna.server.protocol.types import Absent, Reader, Type, invalid
from puna.server.settings import Limits, ServerSettings


class Policy(Enum):
    """What the server does with a field."""

    HONOURED = "honoured"
    """The field has the effect that it is documented to have."""
    INERT = "inert"
    """The value is checked and does not affect the answer. It is echoed if the response has a field for it."""
    VALUES = "values"
    """The values in `Field.accepted` are honoured; others are refused."""
    REFUSED = "refused"
    """A request with this field is refused."""


HONOURED, INERT, VALUES, REFUSED = Policy


@dataclass(frozen=True)
class Field:
    """One field of a request.

    Attributes:
        name: its name in JSON.
        type: the type of its values.
        policy: what the server does with it.
        doc: what it means; for a refused field, the reason or what to use instead.
        default: the value if the field is absent or null.
        required: whether its absence is an error.
        accepted: for `VALUES`, the accepted values.
        example: a valid value, for tests and documents.
        code: the code of the error for a refused field.
        setting: for a refused field, the setting of the server that makes it honoured.
    """

    name: str
    type: Type
    policy: Policy
    doc: str
    default: Any = None
    required: bool = False
    accepted: tuple[Any, ...] = ()
    example: Any = None
    code: str = "unsupported_parameter"
    setting: str | None = None


class Values(dict[str, Any]):
    """The values of a table's fields, with defaults for absent ones.

    Attributes:
        ignored: paths of the unknown fields that were accepted.
    """

    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table(Type):
    """An object with known fields.

    Attributes:
        name: the name of the schema in OpenAPI.
        fields: the rows.
        open: whether unknown keys are accepted, and listed as ignored.
        keeps: whether the result contains the values of unknown keys, which chat templates may use.
    """

    name: str
    fields: tuple[Field, ...]
    open: bool = True
    keeps: bool = False
    python = (dict,)

    def read(self, path: str, value: Any, reader: Reader) -> Values:
        """Returns the values of the fields; null is the same as an absent field."""
        if not isinstance(value, dict):
            raise invalid(path or "the body", value, "an object")
        values, names = Values(), {row.name for row in self.fields}
        for name in value.keys() - names:
            self._unknown(path, name, value[name], reader)
            if self.keeps:
                values[name] = value[name]
        for row in self.fields:
            item = value.get(row.name)
            item_path = f"{path}.{row.name}" if path else row.name
            if item is None:
                if row.required:
                    raise invalid(item_path, None if row.name in value else Absent(), row.type.words(reader.limits))
                values[row.name] = row.default
            else:
                values[row.name] = read_field(row, item_path, item, reader)
        return values

    def _unknown(self, path: str, name: str, value: Any, reader: Reader) -> None:
        item_path = f"{path}.{name}" if path else name
        if self.open or not reader.refuses_unknown:
            reader.ignored.append(item_path)
        else:
            names = [row.name for row in self.fields if row.policy is not REFUSED]
            remedy = suggestion(name, names) or "; omit it, or start the server with --unknown-fields warn"
            raise unsupported(item_path, f"there is no field {show(item_path)}{remedy}")

    def words(self, limits: Limits) -> str:
        """Returns "an object" with the names of its required fields."""
        required = [row.name for row in self.fields if row.required]
        return "an object" + (f" with {' and '.join(map(repr, required))}" if required else "")

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema; every field may be null."""
        properties = {row.name: _schema(row, limits) for row in self.fields if row.policy is not REFUSED}
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        required = [row.name for row in self.fields if row.required]
        if required:
            schema["required"] = required
        if not self.open:
            schema["additionalProperties"] = False
        return schema


def read_field(row: Field, path: str, value: Any, reader: Reader) -> Any:
    """Returns the value of a field that is not null.

    Raises:
        ApiError: 400, if the field is refused, or the value has the wrong type or is not accepted.
    """
    if row.policy is REFUSED and row.setting not in reader.enabled:
        raise ApiError(400, f"{path} is not supported; {row.doc}", param=path, code=row.code)
    result = row.type.read(path, value, reader)
    if row.policy is VALUES and result not in row.accepted:
        accepted = " or ".join(map(show_json, row.accepted))
        raise unsupported(path, f"{path} is {show_json(value)}; this server supports only {accepted}: {row.doc}")
    return result


def read(table: Table, document: dict[str, Any], settings: ServerSettings) -> Values:
    """Returns the values of a request's fields.

    Raises:
        ApiError: 400, if a field is unknown, refused, missing or invalid; the error names the field.
    """
    enabled = ("trust_request_chat_template",) if settings.trust_request_chat_template else ()
    reader = Reader(settings.limits, settings.unknown_fields == "refuse", enabled=enabled)
    values = table.read("", document, reader)
    values.ignored = tuple(sorted(dict.fromkeys(reader.ignored)))
    return values


def _schema(row: Field, limits: Limits) -> dict[str, Any]:
    """Returns the schema of a field."""
    schema = {"enum": list(row.accepted)} if row.policy is VALUES else row.type.schema(limits)
    doc = row.doc[:1].upper() + row.doc[1:] + "."
    if row.required:
        return {**schema, "description": doc}
    if set(schema) == {"type"} or "type" in schema:
        schema = {**schema, "type": [schema["type"], "null"]}
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    elif "anyOf" in schema:
        schema = {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    elif "enum" in schema:
        schema = {"enum": [*schema["enum"], None]}
    return {**schema, "description": doc, **({} if row.default is None else {"default": row.default})}
