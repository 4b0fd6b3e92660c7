"""Rendering chat templates: sandboxed Jinja with the extensions of Hugging Face, and limits on what a template may do.

Loops, the length of the output, repetitions, powers and padding are limited. The limits stop mistakes but not every
attack: a template that repeatedly joins text to itself can still exhaust the memory.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from puna.errors import ChatTemplateError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]

MAX_LOOP_STEPS = 1_000_000
"""Limit on the steps of all loops of one rendering; a conversation of 10,000 messages needs fewer."""
MAX_CHARACTERS = 100_000_000
"""Limit on the length of the rendered text, and of a string that a template builds by repetition."""

MAX_WIDTH = 10_000
"""Limit on the width of padding: `'%9d' % x`, `'{:9}'.format(x)`, `center`, `ljust`, `rjust`, `zfill`, `indent`."""

MAX_BITS = 4096
"""Limit on the size of an integer that a template computes."""

_STEPS = "puna_steps"
"""The template variable that counts the steps of every loop."""

_RESERVED = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", _STEPS,
     "return_assistant_tokens_mask", "tokenizer_kwargs")
)  # fmt: skip
"""Template variables that `render_chat` sets, and arguments of transformers that puna does not support."""

_CONTINUE = "\ue000CONTINUE\ue000 "
"""Marks the end of the final message. A template that trims the message removes the trailing space of the mark."""


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any],
) -> str:
    """Renders one conversation.

    Args:
        messages: dictionaries with "role" and usually "content"; keys whose value is None are dropped.
        continue_final_message: end the text right after the content of the last message, for the model to continue it.
        tools, documents: JSON descriptions, for templates that support them.
        variables: more variables for the template, such as `bos_token`.

    Raises:
        ChatTemplateError: the template does not compile, fails, refuses the conversation, or exceeds a limit; or a
            variable has a reserved name.
    """
    reserved = sorted(_RESERVED & variables.keys())
    if reserved:
        raise ChatTemplateError(f"template variable {reserved[0]!r}: the name is reserved; use another name")
    turns = _turns(messages)
    if continue_final_message:
        if add_generation_prompt:
            raise ChatTemplateError("continue_final_message and add_generation_prompt exclude each other; choose one")
        turns[-1] = {**turns[-1], "content": _with_mark(turns[-1].get("content"))}
    values = {
        "messages": turns,
        "tools": _descriptions("tools", tools),
        "documents": _descriptions("documents", documents),
        "add_generation_prompt": add_generation_prompt,
        **variables,
    }
    text = _run(_compile(template), values)
    return _up_to_mark(text) if continue_final_message else text


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ChatTemplateError(f"a conversation must be a list of at least one message, got {messages!r:.60}")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(
                f"{message!r:.60} is not a message; it must be a dictionary with 'role' and 'content'"
            )
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _descriptions(name: str, items: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if items is None:
        return None
    for item in items:
        if not isinstance(item, Mapping):
            raise ChatTemplateError(f"{name}: {item!r:.60} is not a dictionary; describe it by a JSON schema")
    return [dict(item) for item in items]


def _with_mark(content: object) -> Any:
    """Returns the content with `_CONTINUE` after its text, or after the last text of a list of parts."""
    if isinstance(content, str):
        return content + _CONTINUE
    parts = list(content) if isinstance(content, (list, tuple)) else []
    for index in reversed(range(len(parts))):
        if isinstance(parts[index], Mapping) and isinstance(parts[index].get("text"), str):
            parts[index] = {**parts[index], "text": parts[index]["text"] + _CONTINUE}
            return parts
    raise ChatTemplateError("continue_final_message: the last message has no text to continue; give it content")


def _up_to_mark(text: str) -> str:
    mark = _CONTINUE.rstrip()
    at = text.rfind(mark)
    if at < 0:
        raise ChatTemplateError("continue_final_message: the template omits the last message; drop this argument")
    return text[:at] if text.startswith(_CONTINUE, at) else text[:at].rstrip()


def _run(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    import jinja2

    steps = _Steps()
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate({**values, _STEPS: steps}):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise ChatTemplateError(f"the chat template wrote over {MAX_CHARACTERS} characters; fix the template")
    except ChatTemplateError:
        raise
    except jinja2.TemplateError as exc:
        raise ChatTemplateError(f"the chat template refuses this conversation: {exc}") from exc
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as exc:
        raise ChatTemplateError(
            f"the chat template failed on this conversation: {type(exc).__name__}: {exc}; "
            "compare the messages with what the template expects"
        ) from exc
    return "".join(pieces)


class _Steps:
    """Counts the steps of all loops of one rendering."""

    def __init__(self) -> None:
        self.left = MAX_LOOP_STEPS

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.left -= 1
            if self.left < 0:
                raise ChatTemplateError(f"the chat template loops more than {MAX_LOOP_STEPS} times; fix the template")
            yield item


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    """Compiles a template. Cached, because every turn of a chat renders the same template."""
    import jinja2

    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, RecursionError, MemoryError) as exc:
        raise ChatTemplateError(f"the chat template does not compile: {exc}; fix it or pass chat_template=") from exc


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Returns a Jinja environment with the settings, extensions and helper functions of transformers."""
    from jinja2 import ext, nodes, parser, runtime, sandbox, visitor

    class Generation(ext.Extension):
        """The block `{% generation %}`, which marks the assistant's text; rendering outputs the text."""

        tags = {"generation"}  # noqa: RUF012  # the form that Jinja requires

        def parse(self, parser: parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class CountLoops(visitor.NodeTransformer):
        def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # Jinja's naming rule
            self.generic_visit(node)
            node.iter = nodes.Call(nodes.Name(_STEPS, "load"), [node.iter], [], None, None).set_lineno(node.lineno)
            return node

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%"))

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            CountLoops().visit(tree)
            return tree

        def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
            if operator != "%":
                _check_product(operator, left, right)
            elif isinstance(left, str):
                _check_widths(left, right)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            method = inspect.unwrap(__obj)  # the sandbox wraps str.format
            if isinstance(method, types.BuiltinMethodType) and isinstance(method.__self__, str):
                _check_call(method, args, kwargs)
            return super().call(__context, __obj, *args, **kwargs)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation])
    for name in ("center", "format", "indent"):
        environment.filters[name] = _with_width_check(environment.filters[name])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _check_product(operator: str, left: Any, right: Any) -> None:
    """Refuses repetitions, products and powers that would exhaust the memory."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise ChatTemplateError(f"the chat template computes a number of {bits} bits; the limit is {MAX_BITS}")
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(count, int) and len(value) * count > MAX_CHARACTERS:
            raise ChatTemplateError(
                f"the chat template repeats a value to {len(value) * count} items; fix the template"
            )


def _check_call(method: types.BuiltinMethodType, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if method.__name__ in ("format", "format_map"):
        _check_widths(method.__self__, args, kwargs)
    elif method.__name__ in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        _check_widths("", args, kwargs)


_SPECS = re.compile(r"%(?:\([^)]*\))?([-+ #0-9.*]+)|\{[^{}:]*:([^{}]+)")
"""Matches the width and flags of a format: the text between % and its letter, or between : and } of a field."""


def _check_widths(template: object, *values: Any) -> None:
    """Refuses padding over `MAX_WIDTH`. Widths are in the format, or in values from which the format reads widths."""
    numbers = [digits for spec in _SPECS.findall(str(template)) for digits in re.findall(r"\d+", "".join(spec))]
    widths = [int(digits) if len(digits) < 9 else MAX_WIDTH + 1 for digits in numbers]
    if not template or re.search(r"\*|\{[^{}]*:[^{}]*\{", str(template)):
        widths += _numbers_in(values)
    if max(widths, default=0) > MAX_WIDTH:
        raise ChatTemplateError(f"the chat template pads text to more than {MAX_WIDTH} characters; fix the template")


def _numbers_in(value: Any) -> list[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers_in(item)]
    return [value] if isinstance(value, int) else []


def _with_width_check(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a check of the widths to a filter of Jinja that pads or formats."""

    @functools.wraps(filter_)
    def check_and_filter(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths(value if filter_.__name__ == "do_format" else "", args, kwargs)
        return filter_(value, *args, **kwargs)

    return check_and_filter


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # templates may pass it by name
    return datetime.datetime.now().astimezone().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Returns JSON without Jinja's HTML escapes, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
