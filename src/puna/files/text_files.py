"""Text files of any size, read in blocks: for training tokenizers and models."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.errors import ModelNotFoundError, PunaError, show
from puna.files.reading import path_argument, reading_errors

BLOCK = 2**20
"""Bytes of a block: large enough that calls cost nothing, small enough that the memory does not matter."""

_LONG = 16
"""Blocks after which a block ends even if no line ends with a letter."""


def find_text_files(paths: Sequence[str | Path], error: type[PunaError]) -> list[Path]:
    """Returns the files of `paths`: files unchanged, folders as all their .txt and .md files, sorted by path.

    Raises:
        ModelNotFoundError: there is no such file.
        error: no path, or a folder without text files, or a path that is not a regular file.
    """
    if not paths:
        raise error("no text is given; give one or more text files, or a folder of .txt files")
    files: list[Path] = []
    for path in map(path_argument, paths):
        if path.is_dir():
            texts = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md") and file.is_file())
            if not texts:
                raise error(f"{path}: the folder contains no .txt or .md file; give the files themselves")
            files += texts
        elif not path.exists():
            raise ModelNotFoundError(f"{path}: no such file; give a text file, or a folder of .txt files")
        elif not path.is_file():
            raise error(f"{path}: not a regular file; give a text file")
        else:
            files.append(path)
    return files


def text_blocks(path: Path, error: type[PunaError], size: int = BLOCK) -> Iterator[str]:
    """Yields the text of a file in blocks of about `size` bytes, without a byte-order mark.

    A block ends in front of the end of a line, if possible after a letter: there, every usual tokenizer begins a new
    token, so that the tokens of the blocks are those of the text. Line ends are unchanged.

    Raises:
        error: the file is not UTF-8 text; the message contains the position of the first wrong byte.
    """
    decoder, rest, position = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    with reading_errors(error), path.open("rb") as file:
        while data := file.read(size):
            _check_text(data, path, position, error)
            rest += _decode(decoder, data, path, position, error)
            position += len(data)
            if end := _block_end(rest, len(rest) > _LONG * size):
                yield rest[:end]
                rest = rest[end:]
        rest += _decode(decoder, b"", path, position, error, final=True)
    if rest:
        yield rest


def _decode(
    decoder: codecs.IncrementalDecoder,
    data: bytes,
    path: Path,
    position: int,
    error: type[PunaError],
    final: bool = False,
) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as exc:
        first = position - pending + exc.start
        raise error(
            f"{path}: byte {first} ({show(exc.object[exc.start : exc.start + 1])}) is not UTF-8 ({exc.reason}); "
            "convert the file to UTF-8, for example with iconv"
        ) from exc


def _check_text(data: bytes, path: Path, position: int, error: type[PunaError]) -> None:
    if position == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise error(f"{path}: the file is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path} > text.txt")
    if (first := data.find(b"\0")) >= 0:
        raise error(f"{path}: byte {position + first} is 0, so the file is binary; give a text file in UTF-8")


def _block_end(text: str, is_long: bool) -> int:
    """Returns where to end a block: before the last line end after a letter; if there is none, 0 unless it is long."""
    end = text.rfind("\n")
    while end > 0 and not text[end - 1].isalpha():
        end = text.rfind("\n", 0, end)
    if end <= 0 and is_long:
        end = text.rfind("\n")
        return end if end > 0 else len(text)
    return max(end, 0)
