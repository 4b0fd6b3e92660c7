"""The fields of POST /v1/responses."""

from __future__ import annotations

from typing import Any

from puna.server.protocol.extras import QUEUE, SERVICE_TIER
from puna.server.protocol.fields import HONOURED, INERT, REFUSED, VALUES, Field, Table
from puna.server.protocol.reasoning import EFFORTS
from puna.server.protocol.sampling import sampling_without
from puna.server.protocol.tagged import Tagged
from puna.server.protocol.types import Any_, Array, Boolean, Integer, Map, ObjectText, OneOf, Text

_ID = Field("id", Text(), INERT, "identifier of the item")
_STATUS = Field("status", Text(), INERT, "status of the item")
_TEXT = Field("text", Text(), HONOURED, "the text", required=True)
_NO_MEDIA = "the model reads only text"

_TEXT_PART = Table(
    "ResponsesText",
    (
        _TEXT,
        Field("annotations", Array(Any_()), INERT, "annotations of an earlier answer"),
        Field("logprobs", Array(Any_()), INERT, "log-probabilities of an earlier answer"),
        Field("prompt_cache_breakpoint", Map(), INERT, "all prefixes are cached"),
    ),
)

PART = Tagged(
    {
        **dict.fromkeys(("input_text", "output_text", "text"), _TEXT_PART),
        "refusal": Table("ResponsesRefusal", (Field("refusal", Text(), HONOURED, "the text", required=True),)),
    },
    refused=dict.fromkeys(
        ("input_image", "input_file", "input_audio", "input_video", "computer_screenshot"), _NO_MEDIA
    ),
)
"""A part of a message's content."""

_CONTENT = OneOf(Text(), Array(PART, high="parts"))

_MESSAGE = Table(
    "ResponsesMessage",
    (
        Field("role", Text(values=("user", "assistant", "system", "developer")), HONOURED, "the author", required=True),
        Field("content", _CONTENT, HONOURED, "the text", required=True, example="Hi"),
        Field("phase", Text(), INERT, "kind of an earlier answer"),
        _ID,
        _STATUS,
    ),
)

_CALL_ID = Field("call_id", Text(1), HONOURED, "identifier that connects a call with its output", required=True)
_CALLER = (
    Field("namespace", Text(), INERT, "namespace of the function"),
    Field("caller", Map(), INERT, "who called the function"),
)

_REASONING_TEXT = Array(
    Table("ResponsesReasoningText", (Field("type", Text(), INERT, "kind of the part"), _TEXT)), high="parts"
)

ITEM = Tagged(
    {
        "message": _MESSAGE,
        "function_call": Table(
            "ResponsesFunctionCall",
            (
                _CALL_ID,
                Field("name", Text(1), HONOURED, "name of the function", required=True),
                Field("arguments", ObjectText(), HONOURED, "the arguments as JSON", required=True),
                _ID,
                _STATUS,
                *_CALLER,
            ),
        ),
        "function_call_output": Table(
            "ResponsesFunctionCallOutput",
            (
                _CALL_ID,
                Field("output", _CONTENT, HONOURED, "the result of the function", required=True),
                Field("name", Text(), HONOURED, "name of the function"),
                _ID,
                _STATUS,
                *_CALLER,
            ),
        ),
        "reasoning": Table(
            "ResponsesReasoning",
            (
                Field("summary", _REASONING_TEXT, HONOURED, "a summary, used if there is no content"),
                Field("content", _REASONING_TEXT, HONOURED, "the reasoning, if the chat template uses it"),
                Field("encrypted_content", Text(), INERT, "this server encrypts no reasoning"),
                _ID,
                _STATUS,
            ),
        ),
    },
    default="message",
    refused={"item_reference": "this server stores no items; send the item itself"},
)
"""An item of `input`."""

FUNCTION = Table(
    "ResponsesFunction",
    (
        Field("name", Text(1, 128), HONOURED, "name of the function", required=True),
        Field("description", Text(), HONOURED, "what the function does"),
        Field("parameters", Map(), HONOURED, "JSON schema of the arguments"),
        Field("strict", Boolean(), INERT, "arguments always follow the schema"),
        Field("defer_loading", Boolean(), INERT, "the model sees all tools"),
        Field("allowed_callers", Array(Text()), INERT, "only the model calls functions"),
        Field("output_schema", Map(), INERT, "results of functions are not checked"),
        Field("async", Boolean(), INERT, "the client decides how it runs functions"),
    ),
)

_CHOICES = OneOf(
    Text(values=("none", "auto", "required")),
    Tagged(
        {
            "function": Table(
                "ResponsesFunctionChoice", (Field("name", Text(1), HONOURED, "the function to call", required=True),)
            ),
            "allowed_tools": Table(
                "ResponsesAllowedTools",
                (
                    Field(
                        "mode", Text(values=("auto", "required")), HONOURED, "whether a call is required", required=True
                    ),
                    Field("tools", Array(Map(), 1, "tools"), HONOURED, "the allowed tools", required=True),
                ),
            ),
        }
    ),
)

_FORMAT = Tagged(
    {
        "text": Table("ResponsesFormatText", ()),
        "json_object": Table("ResponsesFormatObject", ()),
        "json_schema": Table(
            "ResponsesFormatSchema",
            (
                Field("name", Text(1, 64), INERT, "name of the schema", required=True),
                Field("schema", Map(), HONOURED, "the JSON schema that the answer follows", required=True),
                Field("description", Text(), INERT, "what the format is for"),
                Field("strict", Boolean(), INERT, "answers always follow the schema"),
            ),
        ),
    }
)

_INCLUDABLE = (
    "message.output_text.logprobs", "reasoning.encrypted_content", "file_search_call.results",
    "web_search_call.results", "web_search_call.action.sources", "message.input_image.image_url",
    "computer_call_output.output.image_url", "code_interpreter_call.outputs",
)  # fmt: skip

REASONING = Table(
    "ResponsesReasoningOptions",
    (
        Field("effort", Text(values=EFFORTS), HONOURED, "amount of reasoning, if the chat template supports it"),
        Field("summary", Text(values=("auto", "concise", "detailed")), INERT, "reasoning is not summarised"),
        Field("generate_summary", Text(values=("auto", "concise", "detailed")), INERT, "reasoning is not summarised"),
        Field("context", Text(values=("auto", "current_turn", "all_turns")), INERT, "the chat template decides"),
        Field("mode", Text(), VALUES, "the model has one mode", accepted=("standard",)),
    ),
)

TEXT = Table(
    "ResponsesTextOptions",
    (
        Field("format", _FORMAT, HONOURED, "format of the answer", example={"type": "text"}),
        Field("verbosity", Text(), VALUES, "ask for shorter or longer answers in the input", accepted=("medium",)),
    ),
)

_CACHE_OPTIONS = Table(
    "ResponsesCacheOptions",
    (
        Field("mode", Text(values=("implicit", "explicit")), INERT, "all prefixes are cached"),
        Field("ttl", Text(values=("30m", "12h")), INERT, "prefixes are kept until the memory is needed"),
        Field("comparison_response_id", Text(), INERT, "this server stores no responses; the response reports that"),
        Field("prewarm", Boolean(), VALUES, "use max_output_tokens 1", accepted=(False,)),
    ),
)

_STREAM_OPTIONS = Table(
    "ResponsesStreamOptions",
    (Field("include_obfuscation", Boolean(), VALUES, "events are not padded", accepted=(False,)),),
)


def _refused(name: str, doc: str, example: Any) -> Field:
    return Field(name, Any_(), REFUSED, doc, example=example)


FIELDS = Table(
    "ResponsesRequest",
    (
        Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
        Field(
            "input",
            OneOf(Text(), Array(ITEM, high="messages")),
            HONOURED,
            "the conversation",
            required=True,
            example="Hi",
        ),
        Field("instructions", Text(), HONOURED, "a system message before the input"),
        Field("max_output_tokens", Integer(1, "tokens"), HONOURED, "maximum number of tokens of the answer"),
        *QUEUE,
        *sampling_without("n"),
        Field("top_logprobs", Integer(0, "logprobs"), HONOURED, "number of most likely tokens at each position"),
        Field("stream_options", _STREAM_OPTIONS, HONOURED, "options of the stream", example={}),
        Field("text", TEXT, HONOURED, "format of the answer", example={}),
        Field(
            "tools",
            Array(Tagged({"function": FUNCTION}, skips=True), high="tools"),
            HONOURED,
            "functions that the model can call; tools of other types are skipped and listed in X-Puna-Ignored",
            example=[],
        ),
        Field("tool_choice", _CHOICES, HONOURED, "whether and which tools are called", example="auto"),
        Field("parallel_tool_calls", Boolean(), HONOURED, "whether an answer may have several calls", default=True),
        Field("reasoning", REASONING, HONOURED, "options of reasoning", example={}),
        Field("include", Array(Text(values=_INCLUDABLE)), HONOURED, "optional parts of the answer", example=[]),
        Field("truncation", Text(), VALUES, "a prompt is never truncated", accepted=("disabled",)),
        Field("store", Boolean(), INERT, "responses are never stored, and the response echoes false"),
        Field("metadata", Map(Text(0, 512), 16, 64), INERT, "texts that the response echoes", example={}),
        Field("client_metadata", Map(), INERT, "texts that Codex adds for its own server", example={}),
        Field("user", Text(0, 512), INERT, "name of the user, for fair queues"),
        Field("safety_identifier", Text(0, 512), INERT, "name of the user"),
        Field("prompt_cache_key", Text(0, 512), INERT, "key for routers that send a conversation to the same server"),
        Field(
            "prompt_cache_retention", Text(values=("in_memory", "24h")), INERT, "prefixes stay until memory is needed"
        ),
        Field("prompt_cache_options", _CACHE_OPTIONS, INERT, "options of the prefix cache", example={}),
        SERVICE_TIER,
        Field("background", Boolean(), VALUES, "requests are not stored", accepted=(False,)),
        _refused("background_options", "requests are not stored", {}),
        _refused("previous_response_id", "this server stores no responses; send the complete input", "resp_1"),
        _refused("conversation", "this server stores no conversations; send the complete input", "conv_1"),
        _refused("prompt", "this server stores no prompts; send the text", {"id": "pmpt_1"}),
        _refused("context_management", "a prompt is never shortened", []),
        _refused("max_tool_calls", "it limits calls of tools that the server runs, and this server runs none", 1),
        _refused("moderation", "answers are not moderated", {"model": "m"}),
        _refused("access_programs", "this server has no access programs", {}),
        _refused("image", _NO_MEDIA, {}),
    ),
    open=False,
)
