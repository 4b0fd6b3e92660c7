"""Some 300 malformed files: each error names the file, the line and what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from puna.errors import DataError, MissingExtraError
from puna.tokenizer import PreTrainedTokenizerBase, load_tokenizer
from puna.training.data.read import DataOptions, read_examples
from tests.golden.files import LAYOUTS
from tests.training.data.malformed import Malformed, malformed_files

FILES = list(malformed_files())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(LAYOUTS["hf"])


def problems(file: Malformed, path, tokenizer) -> Iterator[str]:
    """Yields what is wrong with the error for a file."""
    path.write_bytes(file.data)
    try:
        read_examples(path, tokenizer, DataOptions())
    except (DataError, MissingExtraError) as exc:
        message = str(exc)
    else:
        yield f"{file.name}: no error"
        return
    finally:
        path.unlink()
    place = str(path) if file.line is None else f"{path}, line {file.line}: "
    if place not in message:
        yield f"{file.name}: the message does not name {place}: {message[:300]}"
    if not re.search(file.words, message, re.DOTALL):
        yield f"{file.name}: {file.words!r} is not in the message: {message[:300]}"
    if len(message) > 1500:
        yield f"{file.name}: the message has {len(message)} characters"


def test_there_are_some_300_files():
    assert len(FILES) >= 290 and len({file.name for file in FILES}) == len(FILES)


def test_each_error_names_the_file_the_line_and_the_problem(tmp_path, tokenizer):
    found = [text for file in FILES for text in problems(file, tmp_path / file.name, tokenizer)]
    assert not found, "\n".join(found)


def test_a_bad_row_can_be_left_out(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n{"prompt": "d", "completion": "e"}\n{')
    with pytest.raises(DataError, match=r"2 rows cannot be used; correct them(?s:.*)line 2(?s:.*)line 4"):
        read_examples(path, tokenizer, DataOptions())
    examples, report = read_examples(path, tokenizer, DataOptions(bad_rows="skip"))
    assert [example.source.row for example in examples] == [1, 3]
    assert len(report.bad_rows) == 2 and "2 rows left out; the first:" in report.notes()[0]
    path.write_text('{"prompt": "c"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_examples(path, tokenizer, DataOptions(bad_rows="skip"))


def test_an_error_shows_ten_of_many_bad_rows(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b"}\n' + '{"text": 1}\n' * 50)
    with pytest.raises(DataError, match=r"50 rows cannot be used(?s:.*)line 11: (?s:.*)and 40 more"):
        read_examples(path, tokenizer, DataOptions())
