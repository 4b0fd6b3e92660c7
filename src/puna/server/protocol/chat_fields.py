"""The fields of POST /v1/chat/completions."""

from __future__ import annotations

from puna.server.protocol.fields import HONOURED, INERT, Field, Table
from puna.server.protocol.sampling import SAMPLING
from puna.server.protocol.types import Any_, Array, Boolean, Integer, Map, OneOf, Text

PART = Table("ContentPart", (
    Field("type", Text(values=("text",)), HONOURED, "the kind of the part", required=True),
    Field("text", Text(), HONOURED, "the text", required=True),
))  # fmt: skip

MESSAGE = Table("Message", (
    Field("role", Text(values=("developer", "system", "user", "assistant", "tool", "function")), HONOURED,
          "who wrote the message; developer means system, function means tool", required=True),
    Field("content", OneOf(Text(), Array(PART, 1, "parts")), HONOURED, "the text, or its parts"),
    Field("name", Text(), HONOURED, "name of the author, for templates that use it"),
    Field("tool_calls", Array(Any_(), 0, "tools"), HONOURED, "calls of tools in an earlier answer"),
    Field("tool_call_id", Text(), HONOURED, "the call that a message with the role tool answers"),
))  # fmt: skip

STREAM_OPTIONS = Table("StreamOptions", (
    Field("include_usage", Boolean(), HONOURED, "send the numbers of tokens in the last chunk", False),
), open=False)  # fmt: skip

CHAT = Table("ChatCompletionRequest", (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
    Field("messages", Array(MESSAGE, 1, "messages"), HONOURED, "the conversation", required=True),
    Field("max_completion_tokens", Integer(1), HONOURED, "maximum number of tokens of the answer", example=3),
    Field("max_tokens", Integer(1), HONOURED, "the same, by its older name", example=3),
    Field("logprobs", Boolean(), HONOURED, "return the log-probability of each token", False, example=True),
    Field("top_logprobs", Integer(0, "logprobs"), HONOURED, "number of most likely tokens to return with them",
          example=2),
    Field("stream_options", STREAM_OPTIONS, HONOURED, "what a stream contains", example={"include_usage": True}),
    Field("metadata", Map(Text(0, 512), 16, 64), INERT, "echoed in the response", example={"a": "b"}),
    *SAMPLING,
), open=False)  # fmt: skip
