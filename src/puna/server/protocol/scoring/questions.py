"""The questions of POST /v1/decisions: their fields, their texts, and answers from likelihoods of options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from puna.errors import show
from puna.server.errors import ApiError
from puna.server.protocol.fields import HONOURED, INERT, Field, Table
from puna.server.protocol.tagged import Tagged
from puna.server.protocol.types import Any_, Array, Boolean, Map, OneOf, Text

MAX_QUESTIONS, MAX_CHOICES, MAX_LEVELS = 400, 255, 100

_NO_MEDIA = "this server reads only text, and never fetches anything"

_PART = Tagged(
    {
        "input_text": Table("DecisionText", (
            Field("text", Text(), HONOURED, "the text", required=True),
            Field("prompt_cache_breakpoint", Any_(), INERT, "the cache finds prefixes by their tokens"),
        )),
        "input_json": Table("DecisionJson", (
            Field("data", OneOf(Map(), Array(Map())), HONOURED, "an object, or an array of objects", required=True),
        )),
    },
    refused={"input_image": _NO_MEDIA},
)  # fmt: skip

_INSTRUCTIONS = Field("instructions", OneOf(Text(1), Array(_PART, 1, "parts")), HONOURED, "the question", required=True)
_NAME = Field("name", Text(1, 64), HONOURED, "repeated in the answer")

_CHOICE = Table("DecisionChoice", (
    Field("value", OneOf(Text(1, 1024), Boolean()), HONOURED, "the option", required=True),
    Field("description", Text(), HONOURED, "what it means"),
))  # fmt: skip

_LEVEL = Table("DecisionLevel", (
    Field("label", Text(1, 1024), HONOURED, "the level", required=True),
    Field("description", Text(), HONOURED, "what it means"),
))  # fmt: skip

QUESTION = Tagged({
    "predicate": Table("PredicateQuestion", (_INSTRUCTIONS, _NAME)),
    "choice": Table("ChoiceQuestion", (
        _INSTRUCTIONS, Field("choices", Array(_CHOICE, 2, MAX_CHOICES), HONOURED, "the options", required=True), _NAME,
    )),
    "score": Table("ScoreQuestion", (
        _INSTRUCTIONS, Field("levels", Array(_LEVEL, 2, MAX_LEVELS), HONOURED, "the levels, the lowest first",
                             required=True), _NAME,
    )),
})  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question about a state.

    Attributes:
        text: the question and its options, as the model reads them.
        values: the fields of the question.
        options: the texts of the possible answers.
    """

    values: Mapping[str, Any]
    text: str
    options: tuple[str, ...]

    def answer(self, likelihoods: Sequence[float]) -> dict[str, Any]:
        """Returns the answer.

        Args:
            likelihoods: the log-likelihood in nats of each option as the complete answer.
        """
        logs = np.asarray(likelihoods, np.float64)
        weights = np.exp(logs - logs.max())
        probabilities = (weights / weights.sum()).tolist()
        best, kind = int(logs.argmax()), self.values["type"]
        head = {"type": kind, "name": self.values["name"]}
        if kind == "predicate":
            return {**head, "probability": probabilities[0]}
        confidence = float(np.exp(logs[best]))
        if kind == "choice":
            values = [item["value"] for item in self.values["choices"]]
            pairs = [{"value": value, "probability": share} for value, share in zip(values, probabilities, strict=True)]
            return {**head, "choice": values[best], "confidence": confidence, "probabilities": pairs}
        levels = [
            {"label": item["label"], "value": value, "probability": share}
            for value, (item, share) in enumerate(zip(self.values["levels"], probabilities, strict=True))
        ]
        score = sum(level["value"] * level["probability"] for level in levels)
        return {**head, "score": score, "confidence": confidence, "probabilities": levels}


def read_question(values: Mapping[str, Any], index: int) -> Question:
    """Returns a question.

    Raises:
        ApiError: 400, if two options have the same text.
    """
    kind, instructions = values["type"], text_of(values["instructions"])
    if kind == "predicate":
        return Question(values, f"{instructions}\nIs this true? Answer Yes or No.", ("Yes", "No"))
    key = "choices" if kind == "choice" else "levels"
    items = [(_text(item.get("value", item.get("label"))), item["description"]) for item in values[key]]
    options = [text for text, _ in items]
    repeated = next((text for text in options if options.count(text) > 1), None)
    if repeated is not None:
        path = f"questions[{index}].{key}"
        raise ApiError(400, f"{path} has two options with the text {show(repeated)}; rename one", param=path,
                       code="invalid_value")  # fmt: skip
    lines = "\n".join(f"- {text}: {description}" if description else f"- {text}" for text, description in items)
    return Question(values, f"{instructions}\nAnswer with one of these options:\n{lines}", tuple(options))


def text_of(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of instructions; the parts become separate lines."""
    if isinstance(content, str):
        return content
    return "\n".join(
        part["text"] if part["type"] == "input_text" else json.dumps(part["data"], ensure_ascii=False)
        for part in content
    )


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else "true" if value else "false"
