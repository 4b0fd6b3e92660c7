"""The fields of POST /v1/chat/completions."""

from __future__ import annotations

from puna.server.protocol.answer_format import FORMATS
from puna.server.protocol.extras import CHAT_ONLY, SHARED
from puna.server.protocol.fields import HONOURED, INERT, REFUSED, Field, Table
from puna.server.protocol.reasoning import EFFORTS
from puna.server.protocol.sampling import SAMPLING
from puna.server.protocol.tagged import Tagged
from puna.server.protocol.types import Any_, Array, Boolean, Integer, Map, ObjectText, OneOf, Text

_NO_MEDIA = "this server reads only text, and never fetches anything"

PART = Tagged(
    {
        "text": Table("TextPart", (
            Field("text", Text(), HONOURED, "the text", required=True),
            Field("prompt_cache_breakpoint", Any_(), INERT, "the cache finds prefixes by their tokens"),
        )),
        "refusal": Table("RefusalPart", (Field("refusal", Text(), HONOURED, "the text", required=True),)),
    },
    refused={"image_url": _NO_MEDIA, "input_audio": _NO_MEDIA, "file": _NO_MEDIA},
)  # fmt: skip

TOOL_CALL = Tagged({
    "function": Table("ToolCall", (
        Field("id", Text(1, 512), HONOURED, "identifier; tool_call_id of the message with the result repeats it",
              required=True),
        Field("function", Table("CalledFunction", (
            Field("name", Text(1, 512), HONOURED, "name of the function", required=True),
            Field("arguments", ObjectText(), HONOURED, "arguments of the call as JSON", required=True),
        )), HONOURED, "the call", required=True),
    )),
}, default="function", refused={"custom": "use a function"})  # fmt: skip

MESSAGE = Table("Message", (
    Field("role", Text(values=("developer", "system", "user", "assistant", "tool", "function")), HONOURED,
          "who wrote the message; developer means system, function means tool", required=True),
    Field("content", OneOf(Text(), Array(PART, 1, "parts")), HONOURED, "the text, or its parts"),
    Field("name", Text(0, 512), HONOURED, "name of the author, for templates that use it"),
    Field("refusal", Text(), HONOURED, "the text of an answer that was a refusal"),
    Field("tool_calls", Array(TOOL_CALL, 0, "tools"), HONOURED, "calls of tools in an earlier answer"),
    Field("tool_call_id", Text(0, 512), HONOURED, "the call that a message with the role tool answers"),
    Field("reasoning_content", Text(), HONOURED, "earlier reasoning, for templates that use it"),
    Field("reasoning", Text(), HONOURED, "the same as reasoning_content"),
    Field("audio", Any_(), REFUSED, _NO_MEDIA),
    Field("function_call", Any_(), REFUSED, "use tool_calls"),
))  # fmt: skip

FUNCTION = Table("Function", (
    Field("name", Text(1, 128), HONOURED, "name of the function", required=True),
    Field("description", Text(), HONOURED, "what the function does, for the model"),
    Field("parameters", Map(), HONOURED, "JSON schema of the arguments"),
    Field("strict", Boolean(), HONOURED, "refuse a schema with unsupported keywords instead of ignoring them", False),
))  # fmt: skip

TOOL = Tagged(
    {"function": Table("Tool", (Field("function", FUNCTION, HONOURED, "the function", required=True),))},
    refused={"custom": "describe the tool as a function"},
)  # fmt: skip

_NAMED = Table("NamedFunction", (Field("name", Text(1, 128), HONOURED, "name of the function", required=True),))

_NAMED_TOOL = Table("NamedTool", (Field("function", _NAMED, HONOURED, "the function to call", required=True),))

_ALLOWED = Table("AllowedTools", (
    Field("mode", Text(values=("auto", "required")), HONOURED, "whether a tool must be called", required=True),
    Field("tools", Array(Tagged({"function": _NAMED_TOOL}), 1, "tools"), HONOURED, "the tools that may be called",
          required=True),
))  # fmt: skip

TOOL_CHOICE = OneOf(
    Text(values=("none", "auto", "required")),
    Tagged({
        "function": _NAMED_TOOL,
        "allowed_tools": Table("AllowedToolsChoice", (
            Field("allowed_tools", _ALLOWED, HONOURED, "the tools that may be called", required=True),
        )),
    }),
)  # fmt: skip

_TOOL_EXAMPLE = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

CHAT = Table("ChatCompletionRequest", (
    Field("model", Text(1), HONOURED, "name of the model or of an adapter", required=True),
    Field("messages", Array(MESSAGE, 1, "messages"), HONOURED, "the conversation", required=True),
    Field("max_completion_tokens", Integer(1, "tokens"), HONOURED, "maximum number of tokens of the answer; by default "
          "only the context limits the answer", example=3),
    Field("max_tokens", Integer(1, "tokens"), HONOURED, "the older name of max_completion_tokens", example=3),
    *SAMPLING,
    Field("logprobs", Boolean(), HONOURED, "return the log-probability of each token", False, example=True),
    Field("top_logprobs", Integer(0, "logprobs"), HONOURED, "with logprobs: number of most likely tokens at each "
          "position"),
    *FORMATS,
    Field("tools", Array(TOOL, 1, "tools"), HONOURED, "functions that the answer may call", example=[_TOOL_EXAMPLE]),
    Field("tool_choice", TOOL_CHOICE, HONOURED, "whether the answer must call functions, and which functions",
          example="none"),
    Field("parallel_tool_calls", Boolean(), HONOURED, "whether the answer may have several calls", True, example=False),
    Field("reasoning_effort", Text(values=EFFORTS), HONOURED, "amount of reasoning, if the model's chat template "
          "supports it; otherwise only \"none\" is accepted", example="none"),
    *SHARED,
    *CHAT_ONLY,
    Field("echo", Boolean(), HONOURED, "begin the answer with the text of the message that it continues", False,
          example=False),
    Field("add_generation_prompt", Boolean(), HONOURED, "end the prompt with the header of the answer", example=False),
    Field("continue_final_message", Boolean(), HONOURED, "continue the last message instead of answering it", False,
          example=False),
    Field("chat_template_kwargs", Map(), HONOURED, "more variables of the model's chat template",
          example={"enable_thinking": False}),
    Field("return_progress", Boolean(), HONOURED, "in a stream, send how much of the prompt has been read", False,
          example=True),
    Field("timings_per_token", Boolean(), HONOURED, "return speeds", False, example=True),
), open=False)  # fmt: skip
