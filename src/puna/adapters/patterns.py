"""The rules by which PEFT selects the modules of a model: lists of name suffixes and regular expressions.

PEFT matches in `tuners_utils.check_target_module_exists` and `utils.other.get_pattern_key`. Names of modules are those
of the model that was wrapped, such as "model.layers.0.self_attn.q_proj".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from puna.errors import CheckpointError, show

_LENGTH = 4000
"""Maximum length of a pattern: unsloth's patterns of a model have 300 characters."""

_REPEATS = 8
"""Maximum number of unlimited repetitions in a pattern; names have fewer than 50 characters, so that matching ends."""


@functools.lru_cache(256)
def _compile(setting: str, pattern: str) -> re.Pattern[str]:
    """Compiles a pattern of adapter_config.json, which is not trusted: the time of matching must be limited.

    Raises:
        CheckpointError: the pattern is invalid, repeats a group (matching can take exponential time), or is long.
    """
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)
    repeats = len(re.findall(r"[*+]|\{\d*,\}", plain))
    if len(pattern) > _LENGTH or repeats > _REPEATS or re.search(r"\)[*+{]", plain):
        raise CheckpointError(
            f"{setting} has the pattern {show(pattern)}, which is longer than {_LENGTH} characters, "
            "repeats a group, or has more than "
            f"{_REPEATS} repetitions, so that matching may not end; list the names of the modules instead"
        )
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as exc:
        raise CheckpointError(
            f"{setting} has the pattern {show(pattern)}, which is not a valid regular expression: {exc}"
        ) from exc


def pattern_value(settings: Mapping[str, Any], setting: str, module: str, default: Any) -> Any:
    """Returns the value of the first pattern of a setting, such as `rank_pattern`, that matches a module's end."""
    for pattern, value in settings.get(setting, {}).items():
        if _compile(setting, rf"(.*\.)?({pattern})$").match(module):
            return value
    return default


def matches(setting: str, names: str | Iterable[str], module: str) -> bool:
    """Whether a module is selected by a regular expression, or by a list of names or of the ends of names."""
    if isinstance(names, str):
        return _compile(setting, names).fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def is_target(settings: Mapping[str, Any], module: str) -> bool:
    """Whether the adapter changes a module, according to adapter_config.json."""
    if (excluded := settings.get("exclude_modules")) and matches("exclude_modules", excluded, module):
        return False
    if any(f".{name}." in f".{module}." for name in settings.get("modules_to_save") or ()):
        return False
    parameters = [name.removesuffix(".weight") for name in settings.get("target_parameters") or ()]
    targets = settings["target_modules"]
    if parameters and matches("target_parameters", parameters, module):
        return True
    if isinstance(targets, str) or module in targets:
        return matches("target_modules", targets, module)
    return matches("target_modules", targets, module) and _in_layers(settings, module)


def _in_layers(settings: Mapping[str, Any], module: str) -> bool:
    """Whether the module is in a layer that `layers_to_transform` lists; every layer if the setting is missing."""
    layers = settings.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = settings.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := _compile("layers_pattern", rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.").match(module):
            return int(match["layer"]) in ([layers] if isinstance(layers, int) else layers)
    return False
