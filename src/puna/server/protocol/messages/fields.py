"""The fields of POST /v1/messages and POST /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from puna.server.protocol.extras import QUEUE
from puna.server.protocol.fields import HONOURED, INERT, REFUSED, VALUES, Field, Table
from puna.server.protocol.reasoning import EFFORTS
from puna.server.protocol.sampling import sampling_without
from puna.server.protocol.tagged import Tagged
from puna.server.protocol.types import Any_, Array, Boolean, Integer, Map, OneOf, Text

_CACHE = Field("cache_control", Map(), INERT, "all prefixes are cached")
_CITATIONS = Field("citations", OneOf(Array(Any_()), Map()), INERT, "answers cite nothing")
_NO_MEDIA = "the model reads only text"
_NO_SERVER_TOOLS = "this server runs no tools; define tools that the client runs"

_TEXT_PART = Table("MessagesText", (Field("text", Text(), HONOURED, "the text", required=True), _CACHE, _CITATIONS))

_MEDIA = dict.fromkeys(("image", "document", "search_result", "container_upload", "browser_state"), _NO_MEDIA)

_TEXTS = OneOf(Text(), Array(Tagged({"text": _TEXT_PART}, refused=_MEDIA), high="parts"))

_CALLER = (
    Field("caller", Map(), INERT, "who called the tool"),
    Field("toolset_name", Text(), INERT, "name of the tool's set"),
)

_TOOL_USE = Table(
    "MessagesToolUse",
    (
        Field("id", Text(1), HONOURED, "identifier that connects a call with its result", required=True),
        Field("name", Text(1), HONOURED, "name of the tool", required=True),
        Field("input", Map(), HONOURED, "the arguments", required=True),
        _CACHE,
        *_CALLER,
    ),
)

_TOOL_RESULT = Table(
    "MessagesToolResult",
    (
        Field("tool_use_id", Text(1), HONOURED, "identifier of the call", required=True),
        Field(
            "content",
            OneOf(
                Text(),
                Array(
                    Tagged(
                        {
                            "text": _TEXT_PART,
                            "tool_reference": Table(
                                "MessagesToolReference",
                                (Field("tool_name", Text(), HONOURED, "name of the tool", required=True), _CACHE),
                            ),
                        },
                        refused=_MEDIA,
                    ),
                    high="parts",
                ),
            ),
            HONOURED,
            "the result",
        ),
        Field("is_error", Boolean(), HONOURED, 'whether the call failed; "Error: " is then added before the result'),
        _CACHE,
        *_CALLER[1:],
    ),
)

BLOCK = Tagged(
    {
        "text": _TEXT_PART,
        "tool_use": _TOOL_USE,
        "tool_result": _TOOL_RESULT,
        "thinking": Table(
            "MessagesThinking",
            (
                Field("thinking", Text(), HONOURED, "the reasoning, if the chat template uses it", required=True),
                Field("signature", Text(), INERT, "reasoning is not signed"),
            ),
        ),
        "redacted_thinking": Table("MessagesRedacted", (Field("data", Text(), INERT, "encrypted reasoning"),)),
    },
    refused={**_MEDIA, "server_tool_use": _NO_SERVER_TOOLS, "web_search_tool_result": _NO_SERVER_TOOLS},
)
"""A block of a message's content."""

_MESSAGE = Table(
    "MessagesMessage",
    (
        Field(
            "role",
            Text(values=("user", "assistant", "system", "ctx", "msg")),
            HONOURED,
            '"ctx" and "msg", which Claude Code sends, are read as "user"',
            required=True,
        ),
        Field("content", OneOf(Text(), Array(BLOCK, high="parts")), HONOURED, "the text", required=True),
    ),
)

TOOL = Table(
    "MessagesTool",
    (
        Field("name", Text(1, 128), HONOURED, "name of the tool", required=True),
        Field("input_schema", Map(), HONOURED, "JSON schema of the arguments", required=True),
        Field("description", Text(), HONOURED, "what the tool does"),
        Field("strict", Boolean(), INERT, "arguments always follow the schema"),
        Field("defer_loading", Boolean(), HONOURED, "the tool is skipped, and listed in X-Puna-Ignored"),
        Field("input_examples", Array(Map()), INERT, "the schema describes the arguments"),
        Field("eager_input_streaming", Boolean(), INERT, "arguments are always sent token by token"),
        Field("allowed_callers", Array(Text()), INERT, "only the model calls tools"),
        _CACHE,
    ),
)

SERVER_TOOLS = (
    "web_search", "web_fetch", "bash", "text_editor", "code_execution", "computer", "browser", "memory", "tool_search",
    "mcp_toolset", "advisor",
)  # fmt: skip
"""Types of tools that Anthropic defines, without the date that follows each in a request."""

_PARALLEL = Field("disable_parallel_tool_use", Boolean(), HONOURED, "whether an answer has at most one call")

_CHOICE = Tagged(
    {
        "auto": Table("MessagesChoiceAuto", (_PARALLEL,)),
        "any": Table("MessagesChoiceAny", (_PARALLEL,)),
        "tool": Table(
            "MessagesChoiceTool", (Field("name", Text(1), HONOURED, "the tool to call", required=True), _PARALLEL)
        ),
        "none": Table("MessagesChoiceNone", ()),
    }
)

_DISPLAY = Field("display", Text(values=("summarized", "omitted")), INERT, "reasoning is not sent separately")

_THINKING = Tagged(
    {
        "disabled": Table("MessagesThinkingDisabled", ()),
        "enabled": Table(
            "MessagesThinkingEnabled",
            (Field("budget_tokens", Integer(1), INERT, "max_tokens limits the answer", required=True), _DISPLAY),
        ),
        "adaptive": Table("MessagesThinkingAdaptive", (_DISPLAY,)),
        "between_tools": Table("MessagesThinkingBetween", ()),
    }
)

_FORMAT = Tagged(
    {
        "json_schema": Table(
            "MessagesFormat",
            (
                Field("schema", Map(), HONOURED, "the JSON schema that the answer follows", required=True),
                Field("name", Text(), INERT, "name of the schema"),
            ),
        )
    }
)

_OUTPUT = Table(
    "MessagesOutput",
    (
        Field(
            "effort",
            Text(values=EFFORTS),
            HONOURED,
            "amount of reasoning, if the chat template supports it",
        ),
        Field(
            "format",
            _FORMAT,
            HONOURED,
            "format of the answer",
        ),
    ),
)

_EDITS = Table(
    "MessagesContextManagement",
    (
        Field(
            "edits",
            Array(
                Tagged(
                    {
                        "clear_thinking_20251015": Table(
                            "MessagesClearThinking", (Field("keep", Any_(), INERT, "turns with reasoning"),)
                        )
                    }
                )
            ),
            INERT,
            "the chat template decides which reasoning the model sees; other edits are refused",
        ),
    ),
)


def _refused(name: str, doc: str, example: Any) -> Field:
    return Field(name, Any_(), REFUSED, doc, example=example)


_COMMON = (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
    Field("messages", Array(_MESSAGE, 1, "messages"), HONOURED, "the conversation", required=True,
          example=[{"role": "user", "content": "Hi"}]),
    Field("system", _TEXTS, HONOURED, "the system message; lines with x-anthropic-billing-header are removed"),
    Field("tools", Array(Tagged({"custom": TOOL}, default="custom", skips=True), high="tools"), HONOURED,
          "tools that the model can call", example=[]),
    Field("tool_choice", _CHOICE, HONOURED, "whether and which tools are called", example={"type": "auto"}),
    Field("thinking", _THINKING, HONOURED, "whether to reason, if the chat template supports it",
          example={"type": "disabled"}),
    Field("output_config", _OUTPUT, HONOURED, "format of the answer", example={}),
    Field("context_management", _EDITS, INERT, "edits of the conversation", example={"edits": []}),
    Field("cache_control", Map(), INERT, "all prefixes are cached", example={"type": "ephemeral"}),
    Field("speed", Text(), VALUES, "there is one speed", accepted=("standard",)),
    Field("output_format", _FORMAT, HONOURED, "older name of output_config.format",
          example={"type": "json_schema", "schema": {"type": "object"}}),
    Field("thread", Any_(), REFUSED, "this server stores no threads; send all messages", example={"type": "create"},
          code="thread_unsupported_request"),
    _refused("compaction", "a prompt is never shortened", {"type": "summarize"}),
    _refused("billing_policy", "nothing is billed", {"type": "billing_policy"}),
    _refused("user_profile_id", "there are no profiles", "p"),
    _refused("workspace_id", "there are no workspaces", "w"),
    _refused("mcp_servers", "this server calls no other servers", []),
)  # fmt: skip

FIELDS = Table(
    "MessagesRequest",
    (
        *_COMMON,
        Field("max_tokens", Integer(1, "tokens"), HONOURED, "maximum number of tokens of the answer", required=True,
              example=16),
        Field("stop_sequences", Array(Text(1, "stop_characters"), high="stops"), HONOURED,
              "stop strings: the answer ends before the first one that occurs", example=["\n\n"]),
        *QUEUE,
        *sampling_without("n", "stop"),
        Field("metadata", Table("MessagesMetadata", (Field("user_id", Text(), INERT, "name of the user"),)), INERT,
              "name of the user, for fair queues", example={}),
        Field("service_tier", Text(), VALUES, "there is one class of requests", accepted=("auto", "standard_only")),
        _refused("fallbacks", "requests are answered by the model that they name", []),
        _refused("fallback_credit_token", "nothing is billed", "t"),
        _refused("container", "this server runs no code", "c"),
        _refused("inference_geo", "this server cannot choose where it runs", "us"),
        _refused("diagnostics", "this server stores no messages", {}),
    ),
    open=False,
)  # fmt: skip

COUNT_FIELDS = Table("MessagesCountRequest", _COMMON, open=False)
