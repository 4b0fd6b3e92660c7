"""Values of a call's arguments. A model wrote them: they may have numbers beyond float64 and broken characters."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, NoReturn

from puna.grammars.rules import unique_keys

_HALF = re.compile("[\ud800-\udfff]")
_DIGITS = 4000
"""Maximum number of digits of an integer: Python refuses to read more than 4,300."""


def nearest_number(text: str) -> int | float:
    """Returns a JSON number; one outside of the range of float64, which other programs cannot read, is the nearest."""
    if text.lstrip("-").isdigit() and len(text) <= _DIGITS:
        return int(text)
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def whole_characters(text: str) -> str:
    """Returns a text in which U+FFFD replaces halves of surrogate pairs, which UTF-8 cannot express."""
    return _HALF.sub("\ufffd", text)


def read_arguments(text: str) -> Any:
    """Returns the value of a call's arguments, with the nearest numbers and whole characters.

    Raises:
        ValueError: the text is not JSON, or an object has a key twice.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(
        text, object_pairs_hook=unique_keys, parse_int=nearest_number, parse_float=nearest_number,
        parse_constant=_refuse,
    )  # fmt: skip
    if "\\u" not in text:
        return value
    return json.loads(whole_characters(json.dumps(value, ensure_ascii=False)))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
