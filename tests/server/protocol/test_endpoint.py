"""The bodies of requests are read without delaying others, and their sizes in the queue are those of their answers."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

pytest.importorskip("fastapi")

from puna.server.errors import ApiError, to_json
from puna.server.protocol.chat.fields import CHAT
from puna.server.protocol.completions.fields import COMPLETION
from puna.server.protocol.endpoint import _queue_options
from puna.server.protocol.fields import Table, read
from puna.server.protocol.responses.fields import FIELDS as RESPONSE
from puna.server.protocol.scoring.embeddings import EMBEDDING
from puna.server.protocol.scoring.likelihoods import SCORE
from puna.server.protocol.strict_json import parse
from puna.server.settings import ServerSettings
from puna.server.tools.values import read_arguments

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
    with pytest.raises(ApiError, match="outside the range") as caught:
        parse(f'{{"a": [{text}]}}'.encode(), 8)
    assert caught.value.param == "a[0]" and caught.value.message.startswith(f"a[0] is {text[:40]}, which")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_is_not_a_number_is_refused_with_the_name_of_the_field(text: str) -> None:
    with pytest.raises(ApiError, match="not a JSON number") as caught:
        parse(f'{{"a": {{"b": "NaN"}}, "c": [1, {{"d": {text}}}]}}'.encode(), 8)
    assert caught.value.param == "c[1].d"
    with pytest.raises(ApiError, match=f"the body is {text}"):
        parse(text.encode(), 8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e999", sys.float_info.max),
        ("[-1e999]", [-sys.float_info.max]),
        ("9" * 30, int("9" * 30)),
        ("1" + "0" * 5000, sys.float_info.max),
        (r'{"\udc00": "a\ud800"}', {"\ufffd": "a\ufffd"}),
        (r'"\ud83d\ude00"', "\U0001f600"),
    ],
)
def test_what_a_model_wrote_in_a_call_is_accepted_in_the_history(text: str, value: Any) -> None:
    arguments = f'{{"x": {text}}}'
    assert read_arguments(arguments) == {"x": value}
    assert parse(f'{{"a": [{{"type": "tool_use", "input": {arguments}}}]}}'.encode(), 8)["a"][0]["input"] == {
        "x": value
    }
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    document = read(RESPONSE, {"model": "m", "input": [call]}, ServerSettings())
    assert document["input"][0]["arguments"] == arguments


@pytest.mark.parametrize("text", ["1e999", "9" * 30, r'"\ud800"'])
def test_outside_of_calls_the_same_is_refused(text: str) -> None:
    for body in (f'{{"type": "tool_use", "id": {text}, "input": {{}}}}', f'{{"input": {text}}}'):
        with pytest.raises(ApiError):
            parse(body.encode(), 8)
    with pytest.raises(ApiError, match="NaN"):
        parse(b'{"type": "tool_use", "input": {"x": [NaN, 1e999]}}', 8)


BODIES = [
    "null",
    "[]",
    '"a"',
    "7",
    "[1e999]",
    "[" + "9" * 30 + "]",
    "1e999",
    "[NaN]",
    '["\\ud800"]',
    '"\\ud800"',
    "[{}, [null]]",
]


@pytest.mark.parametrize("text", BODIES)
def test_a_body_that_is_no_object_is_refused_whatever_it_contains(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(text.encode(), 8)
    assert caught.value.status == 400 and json.loads(to_json(caught.value.openai()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, "a"], "prompt[1] is 'a'; it must be an integer from 0 to 2147483647"),
        ([-1], "prompt[0] is -1; it must be an integer from 0 to 2147483647"),
        (["a", 1], "prompt[1] is 1; it must be a text"),
        ([[1], "a"], "prompt[1] is 'a'; it must be an array of at least 1 items, each an integer from 0 to 2147483647"),
        ([[1], [-1]], "prompt[1][0] is -1; it must be an integer from 0 to 2147483647"),
        ([], "prompt is empty; it must be an array of 1 to 256 items, each a text"),
        (["a"] * 300, "prompt has 300 items; it must be an array of 1 to 256 items, each a text"),
    ],
)
def test_the_error_of_a_list_names_the_kind_of_its_items(value: Any, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(COMPLETION, {"model": "m", "prompt": value}, ServerSettings())
    assert caught.value.message == message


@pytest.mark.parametrize("arguments", ["{", "[]", '{"a": 1, "a": 2}', "null"])
def test_the_error_of_an_earlier_call_names_the_field_of_the_request(arguments: str) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    with pytest.raises(ApiError) as caught:
        read(RESPONSE, {"model": "m", "input": [call]}, ServerSettings())
    assert caught.value.param == "input[0].arguments" and "the text of a JSON object" in caught.value.message
    assert read(RESPONSE, {"model": "m", "input": [call | {"arguments": ""}]}, ServerSettings())


def test_unknown_and_missing_fields_are_named_with_their_path() -> None:
    fields = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for more, message in (
        ({"foo": 1}, "there is no field 'foo'; omit it, or start the server with --unknown-fields warn"),
        ({"n_": 1}, "there is no field 'n_'; did you mean 'n'?"),
        ({"response_format": {}}, "response_format.type is missing; it must be"),
        ({"response_format": {"type": None}}, "response_format.type is null; it must be"),
    ):
        with pytest.raises(ApiError) as caught:
            read(CHAT, {**fields, **more}, ServerSettings())
        assert caught.value.message.startswith(message)
