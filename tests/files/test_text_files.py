"""Text files read in blocks."""

from __future__ import annotations

import pytest

from puna.errors import DataError
from puna.files.text_files import text_blocks


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 1000])
def test_blocks_are_the_text_for_every_size(tmp_path, size):
    text = "one\ntwo, 日本語\r\n\n\n🦙 x\nthree" * 5 + "\n"
    (tmp_path / "text.txt").write_bytes(text.encode())
    blocks = list(text_blocks(tmp_path / "text.txt", DataError, size))
    assert "".join(blocks) == text and all(blocks)


def test_blocks_end_in_front_of_lines_that_follow_a_letter(tmp_path):
    (tmp_path / "text.txt").write_text("word\n" * 10 + "end.\n" * 2)
    blocks = list(text_blocks(tmp_path / "text.txt", DataError, 12))
    assert len(blocks) > 3
    assert all(block.startswith("\n") for block in blocks[1:])
    assert all(block[-1].isalpha() for block in blocks[:3])


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfone")
    assert list(text_blocks(tmp_path / "text.txt", DataError)) == ["one"]


def test_the_position_of_a_wrong_byte_is_the_position_in_the_file(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"x" * 10 + b"\xe6\x97z")
    with pytest.raises(DataError, match=r"byte 10 "):
        list(text_blocks(tmp_path / "text.txt", DataError, 11))
