"""The tables of fields as documents: Markdown for the repository, and the HTML of /docs."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from puna.server.protocol.fields import REFUSED, VALUES, Field, Table
from puna.server.protocol.tagged import Tagged
from puna.server.protocol.types import Array, OneOf, Type
from puna.server.settings import Limits


@dataclass(frozen=True)
class Endpoint:
    """An endpoint with a table.

    Attributes:
        summary: what the endpoint does.
    """

    path: str
    table: Table
    summary: str


def rows(kind: Type, path: str = "") -> Iterator[tuple[str, Field]]:
    """Yields the fields of a type with their paths, also those of objects inside it."""
    if isinstance(kind, Table):
        for row in kind.fields:
            name = f"{path}.{row.name}" if path else row.name
            yield name, row
            yield from rows(row.type, name)
    elif isinstance(kind, Array):
        yield from rows(kind.item, f"{path}[]")
    elif isinstance(kind, OneOf):
        for item in kind.types:
            yield from rows(item, path)
    elif isinstance(kind, Tagged):
        for name, table in kind.kinds.items():
            yield from rows(table, f"{path}({name})")


def cells(path: str, row: Field, limits: Limits) -> tuple[str, str, str, str]:
    """Returns the name, the values, what the server does, and the meaning of a field."""
    values = row.type.words(limits)
    if row.policy is VALUES:
        values = "only " + " or ".join(json.dumps(value) for value in row.accepted)
    if row.policy is REFUSED:
        values = ""
    notes = "required" if row.required else "" if row.default is None else f"default: {json.dumps(row.default)}"
    return path, "; ".join(part for part in (values, notes) if part), row.policy.value, row.doc


def markdown(endpoints: Iterable[Endpoint], limits: Limits) -> str:
    """Returns the tables as Markdown."""
    parts = []
    for endpoint in endpoints:
        parts.append(f"\n## POST {endpoint.path}\n\n{endpoint.summary}.\n\n")
        parts.append("| field | values | policy | meaning |\n|---|---|---|---|\n")
        for path, row in rows(endpoint.table):
            name, values, policy, doc = (text.replace("|", "\\|") for text in cells(path, row, limits))
            parts.append(f"| `{name}` | {values} | {policy} | {doc} |\n")
    return "".join(parts)


def page(endpoints: Iterable[Endpoint], limits: Limits) -> str:
    """Returns the tables as a page of HTML without scripts."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>puna: fields of requests</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/docs/style.css"></head>'
        "<body><main><h1>Fields of requests</h1>"
        '<p>The same in OpenAPI\'s format: <a href="/openapi.json">/openapi.json</a>. A field is <em>honoured</em>, '
        "<em>inert</em> (checked, without effect), honoured for some <em>values</em>, or <em>refused</em>.</p>"
    ]
    for endpoint in endpoints:
        parts.append(f"<h2>POST {html.escape(endpoint.path)}</h2><p>{html.escape(endpoint.summary)}.</p>")
        parts.append(
            "<table><thead><tr><th>field</th><th>values</th><th>policy</th><th>meaning</th></tr></thead><tbody>"
        )
        for path, row in rows(endpoint.table):
            name, *others = (html.escape(text) for text in cells(path, row, limits))
            parts.append(f"<tr><td><code>{name}</code></td>{''.join(f'<td>{text}</td>' for text in others)}</tr>")
        parts.append("</tbody></table>")
    return "".join(parts) + "</main></body></html>\n"


STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; color-scheme: light dark }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #8888; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top }
code { font-size: 0.9em }
"""
