"""The options of `puna train`, one for each setting of a training run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import Field, fields
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from puna.cli.models import VARIABLE, complete_model
from puna.cli.options import MODEL_HELP
from puna.cli.parameters import with_parameters
from puna.cli.terminal import from_environment, usage_errors
from puna.errors import ConfigError
from puna.training.report.equivalent import ALIASES, flag
from puna.training.settings import GROUPS, TASK_DEFAULTS, TrainingSettings
from puna.training.settings.option import checked, option_types

_PANELS = {
    "run": "Run",
    "documents": "Documents",
    "optimizer": "Optimizer",
    "adapter": "Adapter",
    "evaluation": "Evaluation, samples and states",
    "classification": "Classification",
    "pretraining": "New model",
}
"""Headings of the help, by group of settings."""

_ONLY = {"classification": ("classify",), "pretraining": ("pretrain",)}
"""Groups that only some tasks use."""

_NOT_FLAGS = ("task", "resume")
"""The command names the task; `puna train resume` continues a run."""

_METAVARS = {"model": "MODEL", "data": "DATA", "output": "FOLDER", "eval_data": "DATA", "tokenizer": "PATH"}

_VARIABLES = {"model": VARIABLE, "threads": "PUNA_THREADS"}
"""Environment variables with defaults of options, as in other commands."""

_FIELDS = {item.name: item for item in fields(TrainingSettings)}
_LONG_NAMES = {name for name in _FIELDS if "_" in name}


def with_settings(task: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: adds an option for each setting that the task uses; the values arrive as `**values`."""
    kinds = option_types(TrainingSettings)
    options = {
        item.name: (_annotation(_with_default(item, task), kinds[item.name], panel, task), None)
        for group, panel in _PANELS.items()
        if task in _ONLY.get(group, (task,))
        for item in fields(GROUPS[group])
        if item.name not in _NOT_FLAGS
    }
    return partial(with_parameters, options=options)


def _with_default(item: Field[Any], task: str) -> Field[Any]:
    """Returns the setting with the default that it has for a task."""
    if item.name not in TASK_DEFAULTS.get(task, {}):
        return item
    changed = copy(item)
    changed.default = TASK_DEFAULTS[task][item.name]
    return changed


def _annotation(item: Field[Any], kind: Any, panel: str, task: str) -> Any:
    """Returns the type and description of an option; None means that the command line does not set it."""
    kinds = _alternatives(kind)
    names = [flag(item.name), *([ALIASES[item.name]] if item.name in ALIASES else [])]
    common: dict[str, Any] = {"help": _help(item, _is_list(kinds)), "show_default": False, "rich_help_panel": panel}
    if item.name == "model":
        default = "a new model" if task == "pretrain" else "SmolLM2-135M-Instruct"
        common |= {"help": f"{MODEL_HELP} [default: {default}]", "autocompletion": complete_model}
    if item.name in _VARIABLES and not (item.name == "model" and task == "pretrain"):
        common["envvar"] = _VARIABLES[item.name]
    if kinds == [bool]:
        return Annotated[bool | None, typer.Option(f"{names[0]}/--no-{names[0][2:]}", **common)]
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        return Annotated[kinds[0] | None, typer.Option(*names, **common)]
    metavar = _METAVARS.get(item.name, _metavar(kinds))
    if _is_list(kinds):
        return Annotated[list[str] | None, typer.Option(*names, metavar=metavar, **common)]
    parser = None if kinds == [str] else partial(_parse, item)
    return Annotated[str | None, typer.Option(*names, metavar=metavar, parser=parser, **common)]


def _alternatives(kind: Any) -> list[Any]:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [item for item in kinds if item is not NoneType]


def _is_list(kinds: list[Any]) -> bool:
    """Whether an option is repeatable: lists of texts and tables."""
    return any(_is_table(item) or (get_origin(item) is tuple and get_args(item)[0] is str) for item in kinds)


def _is_table(kind: Any) -> bool:
    return isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping)


def _metavar(kinds: list[Any]) -> str:
    if any(map(_is_table, kinds)):
        return "NAME=VALUE"
    words = {int: "N", float: "X", str: "TEXT"}
    parts = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            parts += list(map(str, get_args(kind)))
        elif get_origin(kind) is tuple:
            word = words.get(get_args(kind)[0], "TEXT")
            parts.append(word if word == "TEXT" else f"{word},{word},...")
        else:
            parts.append(words.get(kind, "TEXT"))
    return "|".join(dict.fromkeys(parts))


def _help(item: Field[Any], is_repeatable: bool) -> str:
    """Returns the description of a setting as a sentence, with its limits and its default."""
    text = re.sub(r"\w+", lambda match: flag(match[0]) if match[0] in _LONG_NAMES else match[0], item.metadata["text"])
    text = text[0].upper() + text[1:] + "." * (not text.endswith(".")) + " Repeatable." * is_repeatable
    notes = [*_limits(item.metadata["limits"])]
    if item.default not in (None, (), ""):
        notes.append(f"default: {_default(item.default)}")
    return text + (f" [{'; '.join(notes)}]" if notes else "")


def _limits(limits: Mapping[str, float]) -> Iterator[str]:
    """Yields the limits in words, except those that nobody reaches."""
    if "at least" in limits and "at most" in limits:
        yield f"from {_bound(limits['at least'])} to {_bound(limits['at most'])}"
    else:
        yield from (f"{name} {_bound(limit)}" for name, limit in limits.items() if limit < 1e9)


def _bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parse(item: Field[Any], text: str) -> Any:
    """Returns the value of an option: a number, a list of numbers or a text, whichever the setting accepts first."""
    parts = [_numbers(part) for part in text.split(",")]
    lists = [[part[at] for part in parts] for at in (0, -1)] if all(parts) else []
    return _first_accepted(item, [*_numbers(text), *lists, text])


def _numbers(text: str) -> list[Any]:
    """Returns the readings of a text as a whole number and as a number."""
    return [number for kind in (int, float) if (number := _number(kind, text)) is not None]


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _first_accepted(item: Field[Any], readings: list[Any]) -> Any:
    """Returns the first reading that the setting accepts; the error shows a number as such."""
    for reading in readings:
        with suppress(ConfigError):
            return checked(TrainingSettings, item, reading)
    with usage_errors(flag(item.name)):
        return checked(TrainingSettings, item, readings[0])


def read_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that the command line sets, by name."""
    kinds = option_types(TrainingSettings)
    flags = {}
    for name, value in values.items():
        if value is None or value == []:
            continue
        item = _FIELDS[name]
        alternatives = _alternatives(kinds[name])
        if any(map(_is_table, alternatives)) and isinstance(value, list):
            flags[name] = _table(item, value)
        elif isinstance(value, list | tuple) and len(value) == 1 and str in alternatives:
            flags[name] = value[0]
        else:
            flags[name] = value
    return flags


def _table(item: Field[Any], pairs: list[str]) -> Any:
    """Returns the table of options such as --columns text=body."""
    texts = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not name or not mark:
            raise typer.BadParameter(f"must be NAME=VALUE, got {pair!r}", param_hint=flag(item.name))
        texts[name] = value
    readings = [_numbers(value) for value in texts.values()]
    places = (0, -1) if all(readings) else ()
    tables = [{name: values[at] for name, values in zip(texts, readings, strict=True)} for at in places]
    return _first_accepted(item, [*tables, texts])


def without_environment(flags: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags without those that come from the environment if the file sets them."""
    defaults = {name for name in _VARIABLES if file.get(name) and str(flags.get(name)) in from_environment}
    return {name: value for name, value in flags.items() if name not in defaults}
