"""The bodies of requests are read without delaying others, and their sizes in the queue are those of their answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from puna.server.errors import ApiError
from puna.server.protocol.chat.fields import CHAT
from puna.server.protocol.completions.fields import COMPLETION
from puna.server.protocol.endpoint import _queue_options
from puna.server.protocol.fields import Table, read
from puna.server.protocol.responses.fields import FIELDS as RESPONSE
from puna.server.protocol.scoring.embeddings import EMBEDDING
from puna.server.protocol.scoring.likelihoods import SCORE
from puna.server.protocol.strict_json import parse
from puna.server.settings import ServerSettings

TURN = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("table", "fields", "size"),
    [
        (CHAT, {"messages": [TURN] * 5, "n": 3}, 3),
        (RESPONSE, {"input": [TURN] * 5}, 1),
        (COMPLETION, {"prompt": "a"}, 1),
        (COMPLETION, {"prompt": [1, 2, 3]}, 1),
        (COMPLETION, {"prompt": ["a", "b"], "best_of": 2}, 4),
        (COMPLETION, {"prompt": [[1], [2, 3]], "n": 3}, 6),
        (EMBEDDING, {"input": ["a", "b"]}, 2),
        (SCORE, {"text_1": "a", "text_2": ["b", "c", "d"]}, 3),
    ],
)
def test_the_size_of_a_request_is_its_number_of_sequences(table: Table, fields: dict[str, Any], size: int) -> None:
    assert _queue_options(read(table, {"model": "m", **fields}, ServerSettings()))["size"] == size


NUMBERS = ["0", "-7", "1.5", "9223372036854775807", "-9223372036854775808", "1e308", "2E3", "12345678901234567890.5"]
TOO_LARGE = ["9223372036854775808", "-9223372036854775809", "1e309", "-1E400", "1" * 400 + ".0", "9" * 5000]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_exactly(text: str) -> None:
    assert parse(f'{{"a": [{text}, 1]}}'.encode(), 8) == {"a": [json.loads(text), 1]}


@pytest.mark.parametrize("text", TOO_LARGE)
def test_numbers_outside_their_range_are_refused(text: str) -> None:
    with pytest.raises(ApiError, match="outside the range"):
        parse(f'{{"a": [{text}]}}'.encode(), 8)
