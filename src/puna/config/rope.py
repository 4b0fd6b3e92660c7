"""Settings of rotary position embeddings, in every form that configuration files use.

Reads `rope_theta` with `rope_scaling`, whose type is under `type` or `rope_type` (transformers 4.x), and
`rope_parameters` (transformers 5.x). Writes all of these, so that every release finds the form it supports. An unknown
type or key is an error: ignoring it would change every rotation silently. A null, a factor of 1 with linear, yarn or
llama3, and a key of another rope type change nothing; they are left out, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from puna.config.checks import check_between, check_flag, check_positive, check_whole
from puna.errors import ConfigError, show

_YARN_OPTIONS = frozenset(
    {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"}
)  # `finetuned` is informational, written by the authors of YaRN; it does not affect any result.

ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
"""Keys of a configuration file that concern rotary embeddings."""

ROPE_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "linear": (frozenset({"factor"}), frozenset()),
    "dynamic": (frozenset({"factor"}), frozenset()),
    "yarn": (frozenset({"factor", "original_max_position_embeddings"}), _YARN_OPTIONS),
    "llama3": (
        frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
        frozenset(),
    ),
    "longrope": (
        frozenset({"short_factor", "long_factor", "original_max_position_embeddings", "factor", "attention_factor"}),
        frozenset(),
    ),
}
"""Keys of each rope type in addition to `rope_type`: (always present after reading, optional)."""

_KNOWN = frozenset({"mrope_section"}).union(*(required | optional for required, optional in ROPE_KEYS.values()))
"""Keys that transformers uses with some rope type; `mrope_section` only concerns images."""


_LIMIT = 1e9
"""Maximum of a setting, and of its reciprocal; beyond it, contexts and frequencies overflow."""


class RopeSettings(dict[str, Any]):
    """Settings with the key `rope_type`, which can also be read, assigned and compared as `type`, its name in 4.34."""

    def __init__(self, settings: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__({_current_name(key): value for key, value in dict(settings).items()})

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(_current_name(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(_current_name(key), value)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_current_name(key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == {_current_name(key): value for key, value in other.items()}

    __hash__ = None

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, or `default`."""
        return super().get(_current_name(key), default)


class RopeParameters(RopeSettings):
    """Settings with `rope_type` and `rope_theta`; assigning a key changes the configuration that they belong to."""

    def __init__(
        self,
        settings: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        assign: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(settings)
        self._assign = assign

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *others: Any, **values: Any) -> None:
        """Assigns keys; the settings must be complete afterwards."""
        changed = RopeSettings(self)
        for key, value in dict(*others, **values).items():
            changed[key] = value
        if self._assign is not None:
            self._assign({"rope_parameters": dict(changed)})
        super().update(changed)

    def __reduce__(self) -> tuple[Any, ...]:
        return RopeSettings, (dict(self),)


def _current_name(key: Any) -> Any:
    return "rope_type" if key == "type" else key


@dataclass(frozen=True)
class RopeContext:
    """The model's fields that supply missing rope settings and that limit their values."""

    max_position_embeddings: int
    head_dim: int
    original_max_position_embeddings: int | None = None
    """A top-level key in some files (such as Phi-3's); it takes precedence over the same key in the settings."""


def read_rope(fields: Mapping[str, Any], context: RopeContext) -> tuple[float, dict[str, Any] | None, list[str]]:
    """Reads `rope_theta`, `rope_scaling` and `rope_parameters` from `fields`.

    Returns (base, settings, notes). The settings contain `rope_type`; they are None for plain rotary embeddings. The
    notes are about settings that change nothing.

    Raises:
        ConfigError: for an unknown type or key, a value out of range, or two forms that contradict each other.
    """
    settings = {key: fields[key] for key in ("rope_scaling", "rope_parameters") if fields.get(key) is not None}
    results: list[tuple[float, dict[str, Any] | None]] = []
    notes: list[str] = []
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{key} is {show(value)}; it must be an object such as {{'rope_type': 'linear', 'factor': 2}}"
            )
        inner = {name: item for name, item in value.items() if item is not None}
        theta = check_positive("rope_theta", inner.pop("rope_theta", fields.get("rope_theta", 10000.0)))
        results.append((theta, _read_settings(key, inner, context, notes)))
        if theta <= 1 and (results[-1][1] or {}).get("rope_type") == "yarn":
            raise ConfigError(f"rope_theta is {theta}; yarn needs a base greater than 1")
    if not results:
        return check_positive("rope_theta", fields.get("rope_theta", 10000.0)), None, notes
    if results[0] != results[-1]:
        raise ConfigError(
            f"rope_scaling and rope_parameters disagree: {results[0]} and {results[-1]}; keep one of them"
        )
    return *results[0], notes


def check_consistent(fields: Mapping[str, Any]) -> None:
    """Raises ConfigError if `rope_parameters` contradicts other keys, or only a part of each head rotates.

    transformers 4.57 writes contradictions when it saves a configuration of 5.x again: it copies `rope_parameters`
    without reading it, and adds a `rope_theta` of 10000 and a `rope_scaling` of null.
    """
    _check_partial("partial_rotary_factor", fields)
    inner = fields.get("rope_parameters")
    if not isinstance(inner, Mapping):
        return
    theta, base = fields.get("rope_theta"), inner.get("rope_theta")
    if theta is not None and base is not None and theta != base:
        raise ConfigError(f"rope_theta is {theta}, but rope_parameters has {base}; keep one of them")
    kind = inner.get("rope_type") or inner.get("type") or "default"
    if "rope_scaling" in fields and fields["rope_scaling"] is None and kind != "default":
        raise ConfigError(f"rope_scaling is null, but rope_parameters is of type {show(kind)}; keep one of them")


def write_rope(theta: float, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the settings in all three forms, for a configuration file.

    transformers 4.34 accepts `rope_scaling` with exactly `type` and `factor`; 4.43 and later also accept `rope_type`
    with the keys of the other types; 4.57 reads longrope's original context at the top level only; 5.x reads
    `rope_parameters`.
    """
    if settings is None:
        return {
            "rope_theta": theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
    old = dict(settings)
    if old["rope_type"] in ("linear", "dynamic"):
        old = {"type": old["rope_type"], "factor": old["factor"]}
    forms: dict[str, Any] = {
        "rope_theta": theta,
        "rope_scaling": old,
        "rope_parameters": {**settings, "rope_theta": theta},
    }
    if settings["rope_type"] == "longrope":
        forms["original_max_position_embeddings"] = settings["original_max_position_embeddings"]
    return forms


def override_rope(fields: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `fields` without the rope settings that `overrides` replaces; the two may use different forms."""
    result = {key: value for key, value in fields.items() if key not in ROPE_FIELDS}
    parameters = fields.get("rope_parameters")
    theta = fields.get("rope_theta", parameters.get("rope_theta") if isinstance(parameters, Mapping) else None)
    if "rope_parameters" not in overrides and "rope_theta" not in overrides and theta is not None:
        result["rope_theta"] = theta
    if "rope_parameters" not in overrides and "rope_scaling" not in overrides:
        settings = fields.get("rope_scaling") or parameters
        if isinstance(settings, Mapping):
            result["rope_scaling"] = {key: value for key, value in settings.items() if key != "rope_theta"}
        if "original_max_position_embeddings" in fields:
            result["original_max_position_embeddings"] = fields["original_max_position_embeddings"]
    return {key: value for key, value in result.items() if key not in overrides}


def _check_partial(name: str, fields: Mapping[str, Any]) -> None:
    factor = fields.get("partial_rotary_factor")
    if factor not in (None, 1):
        raise ConfigError(f"{name} is {str(factor)[:40]}, not 1; it must be 1, since LLaMA rotates complete heads")


def _read_settings(field: str, inner: dict[str, Any], context: RopeContext, notes: list[str]) -> dict[str, Any] | None:
    """Returns the settings in `inner`, which has no nulls; None if they scale nothing. Adds notes to `notes`."""
    old, new = inner.pop("type", None), inner.pop("rope_type", None)
    if old is not None and new is not None and old != new:
        raise ConfigError(f"{field} has type {show(old)} and rope_type {show(new)}; keep one of them")
    kind = new if new is not None else old
    _check_partial(f"{field}.partial_rotary_factor", inner)
    inner.pop("partial_rotary_factor", None)
    if kind is None and inner.keys() <= {"factor"} and inner.get("factor", 1) == 1:
        kind = "default"
    if kind != "default" and (not isinstance(kind, str) or kind not in ROPE_KEYS):
        supported = ", ".join(["default", *ROPE_KEYS])
        raise ConfigError(f"{field} has the unknown rope type {show(kind)}; puna supports {supported}")
    required, optional = ROPE_KEYS.get(kind, (frozenset(), frozenset()))
    if unknown := sorted(inner.keys() - _KNOWN):
        raise ConfigError(
            f"{field} of type {kind!r} has unknown keys {', '.join(unknown)}; allowed are {sorted(required | optional)}"
        )
    if unused := sorted(inner.keys() - required - optional):
        notes.append(f"{field} of type {show(kind)} does not use {', '.join(unused)}")
    inner = {key: value for key, value in inner.items() if key not in unused}
    if kind == "default":
        return None
    _add_derived(kind, inner, context)
    # With a factor of 1, dynamic still enlarges the base beyond max_position_embeddings.
    if (
        kind not in ("dynamic", "longrope")
        and _is_one(inner.get("factor"))
        and _is_one(inner.get("attention_factor", 1))
    ):
        notes.append(f"{field} of type {show(kind)} has a factor of 1, which scales nothing")
        return None
    if missing := sorted(required - inner.keys()):
        raise ConfigError(f"{field} of type {show(kind)} lacks {', '.join(missing)}")
    return RopeSettings({"rope_type": kind, **_check_values(field, kind, inner, context)})


def _is_one(value: Any) -> bool:
    return value == 1 and not isinstance(value, bool)


def _add_derived(kind: str, inner: dict[str, Any], context: RopeContext) -> None:
    """Adds the keys that transformers derives, so that every release reads the same values from a saved file."""
    if kind in ("yarn", "llama3", "longrope") and context.original_max_position_embeddings is not None:
        inner["original_max_position_embeddings"] = context.original_max_position_embeddings
    if kind in ("yarn", "longrope"):
        original = inner.setdefault("original_max_position_embeddings", context.max_position_embeddings)
        if "factor" not in inner and isinstance(original, int) and original > 0:
            inner["factor"] = context.max_position_embeddings / original
    if kind == "longrope" and "attention_factor" not in inner:
        original, factor = inner["original_max_position_embeddings"], inner.get("factor")
        if isinstance(original, int) and original > 1 and isinstance(factor, int | float):
            # LongRoPE (arXiv:2402.13753), section 3.4, as transformers computes it.
            scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
            inner["attention_factor"] = scale


def _check_values(field: str, kind: str, inner: dict[str, Any], context: RopeContext) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in inner.items():
        if key in ("truncate", "finetuned"):
            check_flag(f"{field}.{key}", value)
            result[key] = value
        elif key in ("short_factor", "long_factor"):
            result[key] = _factors(f"{field}.{key}", value, context.head_dim // 2)
        elif key == "original_max_position_embeddings":
            check_whole(f"{field}.{key}", value)
            result[key] = value
        else:
            result[key] = check_positive(f"{field}.{key}", value)
            check_between(f"{field}.{key}", value, 1 / _LIMIT, _LIMIT)
    factor = result.get("factor")
    if factor is not None and kind != "longrope" and factor < 1:
        raise ConfigError(f"{field}.factor is {factor}; it must be at least 1")
    if kind == "llama3" and result["low_freq_factor"] >= result["high_freq_factor"]:
        low, high = result["low_freq_factor"], result["high_freq_factor"]
        raise ConfigError(f"{field}.low_freq_factor is {low}; it must be below high_freq_factor, {high}")
    return result


def _factors(name: str, value: Any, count: int) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != count:
        size = len(value) if isinstance(value, list | tuple) else value
        raise ConfigError(f"{name} must be a list of {count} numbers (half the width of a head); got {show(size)}")
    return [check_positive(name, item) for item in value]
