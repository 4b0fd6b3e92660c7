"""Fields of chat and completions that do not control sampling: user, cache, kind of service, vLLM's extensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.server.protocol.fields import HONOURED, INERT, REFUSED, VALUES, Field, Table
from puna.server.protocol.types import Any_, Array, Boolean, Integer, Map, OneOf, Text

STREAM_OPTIONS = Table("StreamOptions", (
    Field("include_usage", Boolean(), HONOURED, "send the numbers of tokens in a last chunk without choices", False),
    Field("include_obfuscation", Boolean(), VALUES, "streams have no padding", accepted=(False,)),
    Field("continuous_usage_stats", Boolean(), HONOURED, "send the numbers of tokens in every chunk", False),
), open=False)  # fmt: skip

CACHE_OPTIONS = Table("PromptCacheOptions", (
    Field("mode", Text(values=("implicit", "explicit")), INERT, "the cache finds prefixes by their tokens"),
    Field("ttl", OneOf(Text(1, 32), Integer(0)), INERT, "prefixes stay as long as there is memory for them"),
), open=False)  # fmt: skip

PREDICTED_PART = Table("PredictedPart", (
    Field("type", Text(values=("text",)), HONOURED, "the kind of the part", required=True),
    Field("text", Text(), HONOURED, "the text", required=True),
))  # fmt: skip

PREDICTION = Table("Prediction", (
    Field("type", Text(values=("content",)), HONOURED, "the kind of the prediction", required=True),
    Field("content", OneOf(Text(), Array(PREDICTED_PART, 0, "parts")), HONOURED, "the expected text", required=True),
), open=False)  # fmt: skip

_LABEL = Text(0, 512)

TIERS = {"auto": 0, "default": 0, "flex": 10, "priority": -10}
"""The values of service_tier, and the numbers that they add to the priority of a request."""

SERVICE_TIER = Field("service_tier", Text(), VALUES, "\"flex\" requests wait for all others, which wait for "
                     "\"priority\" requests", accepted=tuple(TIERS), example="flex")  # fmt: skip


def priority_of(values: Mapping[str, Any]) -> int:
    """Returns the priority of a request; requests with lower numbers come first."""
    return (values.get("priority") or 0) + TIERS.get(values.get("service_tier") or "", 0)


def served_tier(values: Mapping[str, Any]) -> str:
    """Returns the field service_tier of a response."""
    return "default" if values["service_tier"] in (None, "auto") else str(values["service_tier"])


SHARED = (
    Field("stream_options", STREAM_OPTIONS, HONOURED, "options of a stream", example={"include_usage": True}),
    Field("user", _LABEL, INERT, "name of the end user; with --fair-by user, users share the server equally",
          example="u"),
    Field("include_stop_str_in_output", Boolean(), HONOURED, "keep the stop string at the end of the answer", False,
          example=True),
    Field("skip_special_tokens", Boolean(), HONOURED, "omit special tokens from the text", True, example=False),
    Field("prompt_logprobs", Integer(0, "logprobs"), HONOURED, "return the log-probability of each token of the "
          "prompt, and this number of most likely tokens at each position", example=1),
    Field("priority", Integer(-(2**31), 2**31 - 1), HONOURED, "waiting requests with lower numbers run first", 0,
          example=1),
    Field("cache_salt", Text(1, 512), HONOURED, "share cached prefixes only with requests of the same salt",
          example="s"),
    Field("prompt_cache_key", _LABEL, INERT, "key of requests with a common prefix, for routers in front of several "
          "servers", example="k"),
    Field("explain_prefix", Boolean(), HONOURED, "return in usage why the prefix cache did not contain the complete "
          "prompt", False, example=True),
    Field("return_token_ids", Boolean(), HONOURED, "return the token ids of the prompt and the answer", False,
          example=True),
)  # fmt: skip
"""Fields of chat and completions."""

QUEUE = tuple(row for row in SHARED if row.name in ("priority", "cache_salt"))
"""Fields of every endpoint that generates."""

CHAT_ONLY = (
    Field("safety_identifier", _LABEL, INERT, "name of the end user", example="u"),
    Field("prompt_cache_options", CACHE_OPTIONS, INERT, "how the provider caches prompts",
          example={"mode": "implicit"}),
    Field("prompt_cache_retention", Text(values=("in_memory", "in-memory", "24h")), INERT,
          "how long the provider caches prompts", example="24h"),
    Field("prediction", PREDICTION, HONOURED, "a text that the answer is expected to resemble: its tokens are used as "
          "guesses, which makes the answer faster and does not change it",
          example={"type": "content", "content": "the llama"}),
    Field("metadata", Map(Text(0, 512), 16, 64), INERT, "echoed in the response", example={"a": "b"}),
    SERVICE_TIER,
    Field("store", Boolean(), VALUES, "this server stores no requests", accepted=(False,), example=False),
    Field("modalities", Array(Text()), VALUES, "answers are text", accepted=(["text"],), example=["text"]),
    Field("verbosity", Text(), VALUES, "ask for shorter or longer answers in the messages", accepted=("medium",),
          example="medium"),
    Field("audio", Any_(), REFUSED, "answers are text"),
    Field("web_search_options", Any_(), REFUSED, "this server does not use the network"),
    Field("moderation", Any_(), REFUSED, "this server does not moderate answers"),
    Field("functions", Any_(), REFUSED, "use tools"),
    Field("function_call", Any_(), REFUSED, "use tool_choice"),
    Field("chat_template", Text(1), REFUSED, "the server uses the model's template; with --trust-request-chat-template "
          "it accepts the templates of requests", setting="trust_request_chat_template"),
)  # fmt: skip
"""Fields of chat."""
