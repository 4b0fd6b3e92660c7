"""`ToolPlan`: how an answer with tools is generated: the conversation, the options of `LLM`, and the parser."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from puna.errors import RuleError
from puna.grammars.check import check_rule
from puna.grammars.keywords import keyword_of
from puna.grammars.rules import OPTIONS, read_rule
from puna.options import Options
from puna.server.tools.formats import ToolFormat, detect
from puna.server.tools.grammar import arguments_schema, tool_grammar
from puna.server.tools.history import needs_tools, with_tools
from puna.server.tools.parser import ToolParser
from puna.server.tools.toolset import Function, ToolSet

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast


@dataclass(frozen=True)
class ToolPlan:
    """How an answer is generated.

    Attributes:
        messages: the conversation for the chat template.
        descriptions: the functions for the chat template.
        options: the options of `LLM`, with the grammar of the answer.
        ignored: keywords of schemas that are ignored, as paths.
        tools: the functions that the answer may call; None if the conversation only has earlier calls.
        form: the model's format of calls.
        free_text: whether any text may precede calls.
    """

    messages: list[dict[str, Any]]
    descriptions: list[dict[str, Any]] | None
    options: Options
    ignored: tuple[str, ...]
    tools: ToolSet | None
    form: ToolFormat
    free_text: bool

    def parser(self) -> ToolParser | None:
        """Returns the parser of an answer; None if the answer calls no functions."""
        return None if self.tools is None else ToolParser(self.tools, self.form, free_text=self.free_text)


def make_plan(
    tokenizer: LlamaTokenizer | LlamaTokenizerFast,
    messages: Sequence[Mapping[str, Any]],
    tools: ToolSet | None,
    options: Options,
    compile_rules: Callable[[Options], object],
) -> ToolPlan | None:
    """Returns how an answer is generated; None for a conversation without tools.

    Args:
        compile_rules: compiles the rules in options, and raises RuleError if that is not possible.

    Raises:
        RuleError: a schema has an unsupported keyword and is strict, or is not valid or too large; or an earlier
            call is malformed.
    """
    if tools is None and not needs_tools(messages):
        return None
    form = detect(tokenizer)
    conversation, descriptions = with_tools(messages, form, tools)
    if tools is None:
        return ToolPlan(conversation, None, options, (), None, form, free_text=True)
    rule = _text_rule(options)
    ignored: tuple[str, ...] = ()
    changed = _with_grammar(options, tools, form, rule)
    try:
        compile_rules(changed)
    except RuleError:
        compile_rules(options)  # if the rule of the text is the cause, the error must not name a tool
        functions, ignored = _supported(tools.functions)
        changed = _with_grammar(options, replace(tools, functions=functions), form, rule)
        compile_rules(changed)
    return ToolPlan(conversation, descriptions, changed, ignored, tools, form, free_text=rule is None)


def _with_grammar(options: Options, tools: ToolSet, form: ToolFormat, rule: str | dict[str, Any] | None) -> Options:
    others = {name: value for name, value in options.items() if name not in OPTIONS}
    others["grammar"] = tool_grammar(tools, form, rule)
    if form.shows_special:
        others["skip_special_tokens"] = False
    return cast(Options, others)


def _text_rule(options: Options) -> str | dict[str, Any] | None:
    """Returns the rule or the schema of answers that are not calls; None if any text is allowed."""
    rule = read_rule(options)
    if rule is None:
        return None
    if rule.kind == "json_schema":
        schema: Any = options["json_schema"]
        return {"type": "object"} if schema is True else json.loads(schema) if isinstance(schema, str) else dict(schema)
    if rule.kind == "grammar":
        raise RuleError("a grammar and tools are given; an answer with tools follows a schema, a regex or a choice")
    expression: str = rule.grammar["lark_grammar"]
    return expression.removeprefix("start: ")


@functools.lru_cache(maxsize=64)
def _supported(functions: tuple[Function, ...]) -> tuple[tuple[Function, ...], tuple[str, ...]]:
    """Returns functions without unsupported keywords in the schemas that are not strict, and the removed keywords."""
    result, ignored = [], []
    for index, function in enumerate(functions):
        path = f"tools[{index}].function.parameters"
        schema, removed = _supported_schema(path, function)
        result.append(replace(function, parameters=schema))
        ignored += [f"{path}.{keyword}" for keyword in removed]
    return tuple(result), tuple(ignored)


_MAX_REMOVED = 20
"""Maximum number of keywords that are removed from a schema: each needs a process that compiles the schema."""


def _supported_schema(path: str, function: Function) -> tuple[dict[str, Any], list[str]]:
    schema, removed = arguments_schema(function.parameters), list[str]()
    for _ in range(_MAX_REMOVED):
        error = _problem(schema)
        if error is None:
            return schema, removed
        keyword = keyword_of(error, json.dumps(schema))
        shorter = schema if keyword is None else cast(dict[str, Any], _without(schema, keyword))
        if function.strict or keyword is None or shorter == schema:
            raise RuleError(f"the function {function.name}: {error.replace('json_schema', path)}")
        schema, removed = shorter, [*removed, keyword]
    raise RuleError(f"the function {function.name}: {path} has too many unsupported keywords")


def _problem(schema: Mapping[str, Any]) -> str | None:
    """Returns why a schema cannot be used; None if it can."""
    try:
        rule = read_rule({"json_schema": schema})
        assert rule is not None
        check_rule(rule.kind, rule.grammar, ())
    except RuleError as exc:
        return str(exc)
    return None


def _without(schema: Any, keyword: str) -> Any:
    """Returns a schema without a keyword at all depths, but with properties of this name."""
    if isinstance(schema, list):
        return [_without(item, keyword) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without(item, keyword) for name, item in value.items()}
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict)
        else value
        if key in ("const", "enum", "required")
        else _without(value, keyword)
        for key, value in schema.items()
        if key != keyword
    }
