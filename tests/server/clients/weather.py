"""The tool of the scripted conversations: its arguments are one of two texts, so that every call is short."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

MODEL = "golden"
QUESTION = "What is the weather in Rome?"
CITIES = ("Rome", "Oslo")
City = Literal["Rome", "Oslo"]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": list(CITIES)}},
    "required": ["city"],
    "additionalProperties": False,
}


class Arguments(BaseModel):
    """The arguments of `get_weather`, for clients that read models."""

    city: City


def get_weather(city: City) -> str:
    """Returns the weather in a city."""
    assert city in CITIES
    return f"It is sunny in {city}."
