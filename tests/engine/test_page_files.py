"""Files of pages: damaged files, several processes, eviction by size, full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time

import numpy as np
import pytest

from puna.engine.disk.page_files import PageFiles, page_header
from puna.errors import StorageError

SIZE = 4096
FINGERPRINT, PARENT = bytes(32), bytes(range(32))


def identity_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def header_of(number: int) -> bytes:
    return page_header(FINGERPRINT, PARENT, tuple(range(number, number + 64)), SIZE)


def data_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SIZE, np.uint8)


def write(files: PageFiles, *numbers: int) -> None:
    for number in numbers:
        files.write(identity_of(number), header_of(number), data_of(number))


def read(files: PageFiles, number: int) -> np.ndarray | None:
    return files.read(identity_of(number), header_of(number), SIZE)


@pytest.fixture
def files(tmp_path) -> PageFiles:
    return PageFiles(tmp_path / "new" / "cache", 1 << 20)


def test_a_page_is_read_as_it_was_written(files):
    write(files, 1, 2)
    for number in (1, 2):
        assert np.array_equal(read(files, number), data_of(number))
    assert read(files, 3) is None
    assert sorted(files.folder.iterdir()) == [files.path(identity_of(number)) for number in (1, 2)]


def test_only_the_owner_can_read_the_files(files):
    old = os.umask(0)
    try:
        write(files, 1)
        other = PageFiles(files.folder.parent / "other", 1 << 20)
    finally:
        os.umask(old)
    assert stat.S_IMODE(other.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(files.path(identity_of(1)).stat().st_mode) == 0o600


def test_a_folder_that_every_user_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(StorageError, match="permissions 777: every user could change"):
        PageFiles(tmp_path, 1 << 20)


def flip(bit: int):
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[bit // 8 % len(content)] ^= 1 << bit % 8
        return bytes(changed)

    return damage


DAMAGES = {
    "empty": lambda content: b"",
    "truncated by a byte": lambda content: content[:-1],
    "truncated in the header": lambda content: content[:100],
    "with another byte": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "zeros at its end": lambda content: content[:-512] + bytes(512),
    "of another version": lambda content: content.replace(b"page 1", b"page 2", 1),
    "with other tokens": lambda content: header_of(2) + content[len(header_of(2)) :],
    "another page": lambda content: other_file(2),
    "foreign": lambda content: b"text" * (len(content) // 4) + b"x" * (len(content) % 4),
}


def other_file(number: int, header: bytes | None = None) -> bytes:
    """Returns a valid file of another page, or a file with another header."""
    header = header_of(number) if header is None else header
    checksum = hashlib.blake2b(header + data_of(number).tobytes(), digest_size=32).digest()
    return header + checksum + data_of(number).tobytes()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_used_and_is_removed(files, damage):
    write(files, 1)
    path = files.path(identity_of(1))
    assert path.read_bytes() == other_file(1)
    path.write_bytes(damage(path.read_bytes()))
    assert read(files, 1) is None
    assert not path.exists()
    write(files, 1)
    assert np.array_equal(read(files, 1), data_of(1))


def test_every_flipped_bit_is_detected(files):
    write(files, 1)
    path = files.path(identity_of(1))
    content = path.read_bytes()
    header_bits = range(0, 8 * (len(content) - SIZE), 7)
    for bit in [*header_bits, *np.random.default_rng(0).integers(0, 8 * len(content), 200).tolist()]:
        path.write_bytes(flip(bit)(content))
        assert read(files, 1) is None, bit


@pytest.mark.parametrize("fingerprint, parent, first", [(b"x" * 32, PARENT, 1), (FINGERPRINT, b"x" * 32, 1),
                                                        (FINGERPRINT, PARENT, 2)])  # fmt: skip
def test_a_valid_file_of_another_model_prefix_or_page_is_not_used(files, fingerprint, parent, first):
    header = page_header(fingerprint, parent, tuple(range(first, first + 64)), SIZE)
    files.path(identity_of(1)).write_bytes(other_file(1, header))
    assert read(files, 1) is None


def test_folders_links_and_pipes_in_place_of_a_file_are_ignored(files):
    write(files, 2)
    paths = [files.path(identity_of(number)) for number in (3, 4, 5)]
    paths[0].mkdir()
    paths[1].symlink_to(files.path(identity_of(2)))
    os.mkfifo(paths[2])
    assert [read(files, number) for number in (3, 4, 5)] == [None] * 3
    assert np.array_equal(read(files, 2), data_of(2))
    write(files, 3, 4)
    assert np.array_equal(read(files, 4), data_of(4))


def numbers_in(files: PageFiles) -> list[int]:
    return sorted(int(path.stem, 16) for path in files.folder.glob("*.page"))


def test_the_least_recently_used_files_are_removed(tmp_path):
    bytes_per_file = len(other_file(0))
    files = PageFiles(tmp_path, 10 * bytes_per_file)
    write(files, *range(10))
    assert numbers_in(files) == list(range(10))
    files.touch(identity_of(number) for number in (0, 3, 77))
    write(files, 10, 11, 12)
    assert numbers_in(files) == [0, 3, *range(5, 13)]


def test_the_files_of_other_processes_count_too(tmp_path):
    bytes_per_file = len(other_file(0))
    limit = 64 * bytes_per_file
    first, second = PageFiles(tmp_path, limit), PageFiles(tmp_path, limit)
    for number in range(0, 300, 2):
        write(first, number)
        write(second, number + 1)
        assert len(numbers_in(first)) <= 64 + 64 // 16
    assert numbers_in(first)[-50:] == list(range(250, 300))


def test_foreign_files_are_neither_counted_nor_removed(tmp_path):
    names = ["notes.txt", "x.page", f"{'0' * 63}.page", f".{'0' * 64}.page.tmp.bak", f"{'G' * 64}.page"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(100_000))
    (tmp_path / "folder").mkdir()
    files = PageFiles(tmp_path, 2 * len(other_file(0)))
    write(files, *range(5))
    assert numbers_in_names(files, names) == [3, 4]
    assert {*names, "folder"} <= {path.name for path in tmp_path.iterdir()}


def numbers_in_names(files: PageFiles, foreign: list[str]) -> list[int]:
    return sorted(int(path.stem, 16) for path in files.folder.glob("*.page") if path.name not in foreign)


def test_temporary_files_of_killed_processes_are_removed(files):
    old, new = (files.folder / f".{identity_of(number).hex()}.page.abc_12z9.tmp" for number in (1, 2))
    for path in (old, new):
        path.write_bytes(bytes(10))
    os.utime(old, (time.time() - 3600,) * 2)
    write(files, 3)
    assert not old.exists()
    assert new.exists()


def test_a_disk_without_space_is_an_error_and_leaves_no_file(files, monkeypatch):
    write(files, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write(files, 2)
    monkeypatch.undo()
    assert list(files.folder.iterdir()) == [files.path(identity_of(1))]


def test_half_of_the_free_space_is_left(files, monkeypatch):
    space = {"bytes": 20 * len(other_file(0))}

    def free(folder):
        return space["bytes"] - sum(path.stat().st_size for path in files.folder.iterdir())

    files.limit = 16 * len(other_file(0))  # so that the folder is scanned before each file
    monkeypatch.setattr("puna.engine.disk.page_files.free_bytes", free)
    write(files, *range(15))
    assert numbers_in(files) == list(range(5, 15))
    space["bytes"] = len(other_file(0))
    with pytest.raises(StorageError, match="No space left on device"):
        write(files, 15)
