"""Values in messages."""

import pytest

from puna.config import LlamaConfig
from puna.errors import ConfigError, show, show_bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"), (None, "None"), ("\x1b", "'\\x1b'"), (10**30, "1" + "0" * 30), ("a" * 99, "'" + "a" * 79 + "..."),
        pytest.param(-(10**5000), "a whole number of more than 80 digits", id="5,000 digits"),
        pytest.param([10**5000], "a list with a number of thousands of digits", id="a list of 5,000 digits"),
    ],
)  # fmt: skip
def test_values_are_shown_briefly(value, text):
    assert show(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (9_999, "9999 bytes"), (10_000, "0.0 MB"), (94_400_000, "94.4 MB"), (10**9, "1.00 GB"),
        (2_500_000_000_000, "2500.00 GB"),
    ],
)  # fmt: skip
def test_numbers_of_bytes_are_shown_in_decimal_units(count, text):
    assert show_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "is 0; it must be a whole number, 1 or more"), (10**30, f"is {10**30}; .*, from 0 to 65536")],
)
def test_numbers_beyond_the_limits_are_refused_with_the_limit(value, words):
    with pytest.raises(ConfigError, match=words):
        LlamaConfig(num_hidden_layers=value).validate()
