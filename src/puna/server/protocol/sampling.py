"""The fields that control sampling, and their translation to options of `LLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from puna.config import GenerationDefaults
from puna.errors import show
from puna.options import Options
from puna.server.errors import ApiError
from puna.server.protocol.fields import HONOURED, Field
from puna.server.protocol.types import Array, Boolean, Integer, Map, Number, OneOf, Text
from puna.server.service import Service

STOP_TEXT = Text(1, "stop_characters")

SAMPLING = (
    Field("temperature", Number(0, 2), HONOURED, "divides the logits; 0 chooses the most likely token. The default is "
          "the value of the model's generation configuration if it samples, otherwise 1", example=0.5),
    Field("top_p", Number(0, 1), HONOURED, "choose from the smallest set of tokens with this total probability",
          example=0.9),
    Field("frequency_penalty", Number(-2, 2), HONOURED, "subtracted from a token's logit for each occurrence of the "
          "token in the answer", example=0.5),
    Field("presence_penalty", Number(-2, 2), HONOURED, "subtracted from the logit of each token that is in the answer",
          example=0.5),
    Field("n", Integer(1, "n"), HONOURED, "number of answers; the prompt is read once", 1, example=2),
    Field("seed", Integer(), HONOURED, "makes sampling repeatable, bit for bit", example=7),
    Field("stop", OneOf(STOP_TEXT, Array(STOP_TEXT, 0, "stops")), HONOURED,
          "stop strings: the answer ends before the first one that occurs", example=["\n"]),
    Field("logit_bias", Map(Number(-100, 100), "logit_bias"), HONOURED, "numbers to add to logits, by token id",
          example={"5": -100}),
    Field("stream", Boolean(), HONOURED, "send the answer as server-sent events while it is generated", False,
          example=False),
    Field("top_k", Integer(-1, 2**31), HONOURED, "choose from the k most likely tokens; 0 and -1 mean all", example=5),
    Field("min_p", Number(0, 1), HONOURED, "exclude tokens below this fraction of the highest probability",
          example=0.05),
    Field("typical_p", Number(0, 1, above=True), HONOURED, "choose from the tokens of typical probability",
          example=0.9),
    Field("repetition_penalty", Number(0, 1000, above=True), HONOURED, "above 1, tokens that occurred before become "
          "less likely", example=1.1),
    Field("min_tokens", Integer(0), HONOURED, "minimum number of tokens of the answer", example=1),
    Field("ignore_eos", Boolean(), HONOURED, "the model's end tokens do not end the answer", example=True),
    Field("stop_token_ids", Array(Integer(0), 0, "token_ids"), HONOURED, "further tokens that end the answer",
          example=[5]),
    Field("allowed_token_ids", Array(Integer(0), 1, "token_ids"), HONOURED, "choose only from these tokens",
          example=[5, 6, 7]),
    Field("bad_words", Array(STOP_TEXT, 0, "token_ids"), HONOURED, "texts that the answer must not contain: a token "
          "that would complete the ids of one of them is not chosen", example=["zebra"]),
)  # fmt: skip
"""Fields of all endpoints that generate."""

_SEEDS = 2**64
"""Number of the engine's seeds; a request may have a negative seed."""


def sampling_without(*names: str) -> tuple[Field, ...]:
    """Returns the fields of `SAMPLING` except those with the given names."""
    return tuple(row for row in SAMPLING if row.name not in names)


def sampling_defaults(service: Service) -> dict[str, float]:
    """Returns the sampling settings of a request that sets none.

    A model whose generation configuration does not sample gets OpenAI's temperature, 1.
    """
    config = service.llm.generation_config
    defaults = GenerationDefaults.of(config)
    names = ("top_p", "top_k", "min_p", "repetition_penalty")
    temperature = defaults.temperature if config.do_sample else 1.0
    return {"temperature": temperature, **{name: getattr(defaults, name) for name in names}}


def read_options(values: Mapping[str, Any], service: Service) -> Options:
    """Returns the options of `LLM` for the fields of `SAMPLING`."""
    names = (
        "temperature", "top_p", "frequency_penalty", "presence_penalty", "min_p", "typical_p", "repetition_penalty",
        "min_tokens", "ignore_eos", "stop_token_ids", "allowed_token_ids", "bad_words",
    )  # fmt: skip
    options: Any = {name: values[name] for name in names if values[name] is not None}
    options.setdefault("temperature", sampling_defaults(service)["temperature"])
    if values["top_k"] is not None:
        options["top_k"] = max(0, values["top_k"])
    if values["seed"] is not None:
        options["seed"] = values["seed"] % _SEEDS
    if values["stop"]:
        options["stop"] = values["stop"]
    if values["logit_bias"]:
        options["logit_bias"] = {_token_id(key): bias for key, bias in values["logit_bias"].items()}
    return cast(Options, options)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise ApiError(400, f"logit_bias has the key {show(key)}; a key must be a token id, such as \"42\"",
                       param="logit_bias", code="invalid_value")  # fmt: skip
    return int(key)
