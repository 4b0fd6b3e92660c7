"""JSON schemas of responses, for OpenAPI."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
INT: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}


def array(item: Schema) -> Schema:
    """Returns the schema of an array."""
    return {"type": "array", "items": item}


def optional(schema: Schema) -> Schema:
    """Returns the schema of a value that may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def record(required: dict[str, Schema], others: dict[str, Schema] | None = None) -> Schema:
    """Returns the schema of an object that has no other fields than these."""
    return {
        "type": "object", "properties": {**required, **(others or {})}, "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


ERROR = record(
    {
        "error": record(
            {"message": TEXT, "type": TEXT, "param": optional(TEXT), "code": optional(TEXT)},
        )
    }
)
"""OpenAI's errors."""

ANTHROPIC_ERROR = record(
    {"type": {"const": "error"}, "error": record({"type": TEXT, "message": TEXT}), "request_id": optional(TEXT)}
)

ANY_ERROR = {"anyOf": [ERROR, ANTHROPIC_ERROR]}
"""Errors in the shape of the client's API."""

_PREFIX_TOKEN = optional(record({"id": INT, "text": TEXT}))

USAGE = record(
    {
        "prompt_tokens": INT, "completion_tokens": INT, "total_tokens": INT,
        "prompt_tokens_details": record({"cached_tokens": INT, "cache_write_tokens": INT}),
        "completion_tokens_details": record({
            "reasoning_tokens": INT, "accepted_prediction_tokens": INT, "rejected_prediction_tokens": INT,
        }),
    },
    {"prefix_miss": optional(record({
        "reason": TEXT, "position": INT, "token": _PREFIX_TOKEN, "cached_token": _PREFIX_TOKEN,
    }))},
)  # fmt: skip

_TOKEN = {"token": TEXT, "logprob": NUMBER, "bytes": array(INT)}
_PROMPT_LOGPROBS = optional(array({"type": ["object", "null"]}))
_TIER = {"enum": ["default", "flex", "priority"]}
_PROMPT_IDS = array(INT)

_MESSAGE = record(
    {
        "role": {"const": "assistant"}, "content": {"type": ["string", "null"]}, "refusal": {"type": "null"},
        "annotations": array({}),
    },
    {"reasoning_content": TEXT, "tool_calls": array(record({
        "id": TEXT, "type": {"const": "function"}, "function": record({"name": TEXT, "arguments": TEXT}),
    }))},
)  # fmt: skip

CHAT_COMPLETION = record(
    {
        "id": TEXT, "object": {"const": "chat.completion"}, "created": INT, "model": TEXT, "system_fingerprint": TEXT,
        "choices": array(record({
            "index": INT, "message": _MESSAGE,
            "logprobs": optional(record({
                "content": array(record({**_TOKEN, "top_logprobs": array(record(_TOKEN))})),
                "refusal": {"type": "null"},
            })),
            "finish_reason": {"enum": ["stop", "length", "tool_calls", "content_filter"]},
        }, {"token_ids": array(INT)})),
        "usage": USAGE,
    },
    {
        "service_tier": _TIER, "metadata": {"type": "object"}, "prompt_logprobs": _PROMPT_LOGPROBS,
        "prompt_token_ids": _PROMPT_IDS, "timings": {"type": "object"},
    },
)  # fmt: skip

TEXT_COMPLETION = record(
    {
        "id": TEXT, "object": {"const": "text_completion"}, "created": INT, "model": TEXT, "system_fingerprint": TEXT,
        "choices": array(record({
            "index": INT, "text": TEXT,
            "logprobs": optional(record({
                "tokens": array(TEXT), "token_logprobs": array({"type": ["number", "null"]}),
                "top_logprobs": array({"type": ["object", "null"]}), "text_offset": array(INT),
            })),
            "finish_reason": {"enum": ["stop", "length", "content_filter"]},
        }, {"token_ids": array(INT), "prompt_token_ids": _PROMPT_IDS, "prompt_logprobs": _PROMPT_LOGPROBS})),
        "usage": USAGE,
    }
)  # fmt: skip

_MESSAGE_BLOCK: Schema = {"anyOf": [
    record({"type": {"const": "text"}, "text": TEXT}),
    record({"type": {"const": "thinking"}, "thinking": TEXT, "signature": TEXT}),
    record({"type": {"const": "tool_use"}, "id": TEXT, "name": TEXT, "input": {"type": "object"}}),
]}  # fmt: skip

MESSAGE = record({
    "id": TEXT, "type": {"const": "message"}, "role": {"const": "assistant"}, "model": TEXT,
    "content": array(_MESSAGE_BLOCK),
    "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded",
                             "refusal"]},
    "stop_sequence": optional(TEXT),
    "usage": record({
        "input_tokens": INT, "cache_creation_input_tokens": INT, "cache_read_input_tokens": INT,
        "output_tokens": INT,
    }),
})  # fmt: skip
"""Anthropic's messages."""

_STATUS: Schema = {"enum": ["completed", "incomplete"]}

_OUTPUT: Schema = {"anyOf": [
    record({
        "id": TEXT, "type": {"const": "message"}, "role": {"const": "assistant"}, "status": _STATUS,
        "content": array(record({
            "type": {"const": "output_text"}, "text": TEXT, "annotations": array({}),
            "logprobs": array(record({**_TOKEN, "top_logprobs": array(record(_TOKEN))})),
        })),
    }),
    record({
        "id": TEXT, "type": {"const": "reasoning"}, "status": _STATUS, "summary": array({}),
        "content": array(record({"type": {"const": "reasoning_text"}, "text": TEXT})),
    }),
    record({
        "id": TEXT, "type": {"const": "function_call"}, "call_id": TEXT, "name": TEXT, "arguments": TEXT,
        "status": _STATUS,
    }),
]}  # fmt: skip

_NULL: Schema = {"type": "null"}
_OBJECT: Schema = {"type": "object"}

RESPONSE = record({
    "id": TEXT, "object": {"const": "response"}, "created_at": INT, "completed_at": optional(INT),
    "status": {"enum": ["completed", "incomplete", "failed"]}, "background": {"const": False}, "model": TEXT,
    "error": optional(record({"code": TEXT, "message": TEXT})), "output": array(_OUTPUT),
    "incomplete_details": optional(record({"reason": TEXT})), "metadata": _OBJECT, "instructions": optional(TEXT),
    "max_output_tokens": optional(INT), "parallel_tool_calls": {"type": "boolean"}, "reasoning": _OBJECT,
    "service_tier": _TIER, "store": {"const": False}, "temperature": NUMBER, "top_p": NUMBER,
    "text": _OBJECT, "tool_choice": {"anyOf": [TEXT, _OBJECT]}, "tools": array(_OBJECT), "top_logprobs": INT,
    "truncation": {"const": "disabled"}, "prompt_cache_options": optional(_OBJECT),
    "prompt_cache_diagnostics": optional(_OBJECT),
    **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"), optional(TEXT)),
    **dict.fromkeys(("conversation", "max_tool_calls", "moderation", "previous_response_id", "prompt"), _NULL),
    "usage": record({
        "input_tokens": INT, "input_tokens_details": record({"cached_tokens": INT, "cache_write_tokens": INT}),
        "output_tokens": INT, "output_tokens_details": record({"reasoning_tokens": INT}), "total_tokens": INT,
    }),
})  # fmt: skip
"""The response of /v1/responses."""

MODEL = record(
    {
        "id": TEXT, "object": {"const": "model"}, "created": INT, "owned_by": TEXT, "root": TEXT,
        "parent": optional(TEXT), "max_model_len": INT,
    },
    {"sampling_defaults": {"type": "object"}},
)  # fmt: skip

_ANTHROPIC_MODEL = {
    "type": "object",
    "properties": {"type": {"const": "model"}, "id": TEXT},
    "required": ["type", "id"],
}

ANY_MODEL: Schema = {"anyOf": [MODEL, _ANTHROPIC_MODEL]}

MODELS: Schema = {
    "anyOf": [
        record({"object": {"const": "list"}, "data": array(MODEL), "models": array({})}),
        record({"data": array(_ANTHROPIC_MODEL), "has_more": {"const": False}, "first_id": TEXT, "last_id": TEXT}),
    ]
}
