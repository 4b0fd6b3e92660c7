"""puna reads GGUF files that the package gguf writes, and refuses malformed and hostile files."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from puna.errors import CheckpointError, ModelNotFoundError
from puna.formats.gguf import open_gguf
from puna.formats.gguf_values import Cursor
from puna.formats.gguf_writer import write_gguf

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def text(value: str | bytes) -> bytes:
    """Encodes a string with its length."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """Encodes a metadata key with the type and the bytes of its value."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """Encodes the header's entry of a tensor."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def strings(count: int) -> bytes:
    """Encodes an array of empty strings."""
    return struct.pack("<IQ", STRING, count) + bytes(8 * count)


def build_file(keys: list[bytes], tensors: list[bytes], data: bytes = b"", /, version: int = 3, **counts: int) -> bytes:
    """Returns a GGUF file; `counts` overrides the header's counts of tensors and keys."""
    header = struct.pack("<4sIQQ", b"GGUF", version, counts.get("tensors", len(tensors)), counts.get("keys", len(keys)))
    head = header + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def test_every_type_of_value_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("words", "ça ▁va 🦙")
    writer.add_array("strings", ["", "a", "▁" * 100])
    writer.add_array("numbers", [3, 1, 2])
    writer.add_array("flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = open_gguf(tmp_path / "a.gguf").metadata
    assert dict(metadata) | {"numbers": 0, "flags": 0} == {
        "general.architecture": "llama",
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31), "u64": 2**64 - 1,
        "i64": -(2**63), "f32": float(np.float32(0.1)), "f64": 0.1, "yes": True, "words": "ça ▁va 🦙",
        "strings": ["", "a", "▁" * 100], "numbers": 0, "flags": 0,
    }  # fmt: skip
    assert metadata["numbers"].tolist() == [3, 1, 2] and metadata["flags"].tolist() == [True, False]
    assert type(metadata["u8"]) is int and type(metadata["f32"]) is float and type(metadata["yes"]) is bool


def test_integers_are_written_in_the_smallest_suitable_type(tmp_path: Path) -> None:
    numbers = {f"k{n}": n for n in (0, 2**32 - 1, 2**32, 2**64 - 1, -1, -(2**31), -(2**31) - 1, -(2**63))}
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"} | numbers, [])
    metadata = open_gguf(tmp_path / "a.gguf").metadata
    assert {key: metadata[key] for key in numbers} == numbers
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    kinds = [reader.fields[key].types[0].name for key in numbers]
    assert kinds == ["UINT32", "UINT32", "UINT64", "UINT64", "INT32", "INT32", "INT64", "INT64"]
    assert {key: reader.fields[key].contents() for key in numbers} == numbers


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_tensors_are_read_from_their_offsets(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(alignment)
    rng = np.random.default_rng(0)
    arrays = {f"t{size}": rng.normal(size=(3, size)).astype(np.float32) for size in (1, 5, 32)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    packed = quants.quantize(arrays["t32"], gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_gguf(tmp_path / "a.gguf").tensors
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape and tensors[name].format.name == "f32"
        np.testing.assert_array_equal(tensors[name].to_float32(), array)
    assert tensors["packed"].shape == (3, 32) and tensors["packed"].format.name == "q5_1"
    np.testing.assert_array_equal(tensors["packed"].data, packed.reshape(-1))


def test_version_2_is_read(tmp_path: Path) -> None:
    words = struct.pack("<IQ", STRING, 2) + text("a") + text("b")
    numbers = struct.pack("<IQ2I", U32, 2, 7, 8)
    keys = [key("words", ARRAY, words), key("numbers", ARRAY, numbers), key("none", ARRAY, strings(0))]
    file = open_gguf(write(tmp_path / "a", build_file(keys, [], version=2)))
    assert file.version == 2 and file.metadata["words"] == ["a", "b"] and file.metadata["none"] == []
    assert file.metadata["numbers"].tolist() == [7, 8]


@pytest.mark.slow
def test_values_of_smollm2_are_bit_identical_to_those_of_the_package_gguf(smollm2: Path) -> None:
    file = open_gguf(smollm2)
    reader = gguf.GGUFReader(smollm2)
    assert [item.name for item in reader.tensors] == list(file.tensors)
    for item in reader.tensors:
        weight = file.tensors[item.name]
        expected = quants.dequantize(item.data, item.tensor_type)
        assert weight.shape == tuple(reversed(item.shape.tolist())) == expected.shape
        assert np.array_equal(weight.to_float32().view(np.uint32), expected.view(np.uint32)), item.name
    assert file.metadata["tokenizer.ggml.tokens"] == reader.fields["tokenizer.ggml.tokens"].contents()
    assert file.metadata["tokenizer.ggml.merges"] == reader.fields["tokenizer.ggml.merges"].contents()


@pytest.mark.timing
def test_opening_smollm2_is_quick(smollm2: Path) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        open_gguf(smollm2)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1


def nested_arrays(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", U32, 0)


HOSTILE_FILES = {
    "empty": (b"", "empty"),
    "wrong magic number": (b"GGUX" + bytes(40), "not with GGUF"),
    "truncated header": (b"GGUF\3", "bytes follow"),
    "version 1": (build_file([], [], version=1), "version 1"),
    "version 4": (build_file([], [], version=4), "version 4"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    "huge tensor count": (build_file([], [], tensors=2**63), "tensors announced"),
    "tensor count beyond the file": (build_file([], [], tensors=1000), "tensors announced"),
    "huge key count": (build_file([], [], keys=2**64 - 1), "metadata keys announced"),
    "huge key length": (build_file([struct.pack("<Q", 2**64 - 1)], [], keys=1), "metadata keys announced"),
    "key past the end": (
        build_file([struct.pack("<Q", 100) + bytes(8)], [], keys=1),
        "100 bytes announced at byte 32, but only",
    ),
    "key not UTF-8": (build_file([key(b"\xff\xfe", U32, bytes(4))], []), "not UTF-8"),
    "key twice": (build_file([key("a", U32, bytes(4))] * 2, []), "'a' appears twice"),
    "unknown value type": (build_file([key("a", 13, bytes(8))], []), "value type 13"),
    "invalid boolean": (build_file([key("a", BOOL, b"\2")], []), "neither 0 nor 1"),
    "huge array": (build_file([key("a", ARRAY, struct.pack("<IQ", U32, 2**62))], []), "numbers announced"),
    "huge array of strings": (
        build_file([key("a", ARRAY, struct.pack("<IQ", STRING, 2**40))], []),
        "strings announced",
    ),
    "unknown array type": (build_file([key("a", ARRAY, struct.pack("<IQ", 99, 0))], []), "value type 99"),
    "deeply nested arrays": (build_file([key("a", ARRAY, nested_arrays(100_000))], []), "an array of 1 arrays"),
    "array of arrays": (build_file([key("a", ARRAY, struct.pack("<IQ", ARRAY, 2**60))], []), "an array of 2*"),
    "string length that overflows": (
        build_file([key("a", ARRAY, struct.pack("<IQQQ", STRING, 3, 2**64 - 16, 2**64 - 1) + bytes(64))], []),
        "end past",
    ),
    "alignment 0": (build_file([key("general.alignment", U32, struct.pack("<I", 0))], []), "power of two"),
    "alignment 48": (build_file([key("general.alignment", U32, struct.pack("<I", 48))], []), "power of two"),
    "text as alignment": (build_file([key("general.alignment", STRING, text("32"))], []), "power of two"),
    "no dimensions": (build_file([], [tensor("t", ())], bytes(16)), "0 dimensions"),
    "five dimensions": (build_file([], [tensor("t", (1,) * 5)], bytes(16)), "5 dimensions"),
    "2^32 - 1 dimensions": (build_file([], [text("t") + struct.pack("<I", 2**32 - 1)], bytes(16)), "dimensions"),
    "extent 0": (build_file([], [tensor("t", (4, 0))], bytes(16)), "positive axes"),
    "huge extents": (build_file([], [tensor("t", (2**63, 2**63))], bytes(16)), "truncated"),
    "unknown tensor type": (build_file([], [tensor("t", kind=99)], bytes(16)), r"ggml type 99 \(unknown .* Use a file"),
    "unsupported tensor type": (build_file([], [tensor("t", (64,), kind=40)], bytes(36)), r"type 40 \(nvfp4\).* Use a"),
    "removed tensor type": (build_file([], [tensor("t", (32,), kind=31)], bytes(32)), r"q4_0_4_4.* Q4_K_M or Q8_0"),
    "rows that end within a block": (build_file([], [tensor("t", (48, 2), kind=8)], bytes(102)), "rows of 48"),
    "offset past the end": (build_file([], [tensor("t", offset=64)], bytes(32)), "truncated"),
    "offset that overflows": (build_file([], [tensor("t", offset=2**64 - 32)], bytes(32)), "truncated"),
    "unaligned offset": (build_file([], [tensor("t", offset=4)], bytes(32)), "multiple of 32"),
    "truncated": (build_file([], [tensor("t", (1000,))], bytes(3999)), "truncated"),
    "tensor twice": (build_file([], [tensor("t"), tensor("t", offset=32)], bytes(64)), "'t' appears twice"),
    "overlap": (build_file([], [tensor("a", (16,)), tensor("b", offset=32)], bytes(64)), "'a' and 'b' overlap"),
}


@pytest.mark.parametrize("case", HOSTILE_FILES)
def test_hostile_files_are_refused(tmp_path: Path, case: str) -> None:
    raw, message = HOSTILE_FILES[case]
    with pytest.raises(CheckpointError, match=message):
        open_gguf(write(tmp_path / "hostile.gguf", raw))


BOMBS = {
    "a file of empty arrays": (
        [struct.pack("<IQ", ARRAY, 2**22) + struct.pack("<IQ", U32, 0) * 2**22],
        "of 4194304 ar",
    ),
    "several arrays of empty strings": ([strings(2**22)] * 5, "4194304 strings announced .* limit is 2097152"),
    "arrays with too many strings in all": ([strings(2**20)] * 3, "1048576 strings announced .* limit is 0"),
}

OPEN = """
import resource, sys
from pathlib import Path
from puna.errors import CheckpointError
from puna.formats.gguf import open_gguf
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
try:
    print(sum(len(value) for value in dict(open_gguf(Path(sys.argv[1])).metadata).values()), "items")
except CheckpointError as exc:
    print(exc)
"""


def open_in_a_gigabyte(path: Path) -> str:
    """Opens a file in a process limited to 1 GB; returns the number of metadata items, or the error."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }  # each thread reserves address space
    command = [sys.executable, "-c", OPEN, str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True).stdout


@pytest.mark.parametrize("case", BOMBS)
def test_arrays_that_would_exhaust_memory_are_refused(tmp_path: Path, case: str) -> None:
    arrays, message = BOMBS[case]
    raw = build_file([key(f"k{index}", ARRAY, value) for index, value in enumerate(arrays)], [])
    assert re.search(message, open_in_a_gigabyte(write(tmp_path / "bomb", raw)))


def test_the_maximum_number_of_strings_fits_in_memory(tmp_path: Path) -> None:
    half = struct.pack("<IQ", STRING, 2**20) + b"".join(text(f"{n:05x}") for n in range(2**20))
    path = write(tmp_path / "full", build_file([key("a", ARRAY, half), key("b", ARRAY, half)], []))
    assert open_in_a_gigabyte(path) == "2097152 items\n"


def test_strings_that_are_not_utf8_are_refused_when_read(tmp_path: Path) -> None:
    value = struct.pack("<IQ", STRING, 2) + text("fine") + text(b"\xff")
    file = open_gguf(write(tmp_path / "a", build_file([key("words", ARRAY, value)], [])))
    with pytest.raises(CheckpointError, match=r"'words': a string is not UTF-8"):
        file.metadata["words"]


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder; give a regular file"):
        open_gguf(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_gguf(tmp_path / "absent")


@pytest.mark.parametrize(
    "special",
    [
        [],
        [""],
        ["x" * 255, "x" * 256, "x" * 70000],
        ["a\0b", "\0" * 9],
        ["\x05" + "\0" * 7 + "abcde"],
        ["é", "llama " * 40, "Ġ"],
    ],
    ids=["plain", "empty", "long", "zeros", "looks like a length", "wide"],
)
@pytest.mark.parametrize("position", [0, 700, 1500])
def test_long_arrays_of_strings_are_read(tmp_path: Path, special: list[str], position: int) -> None:
    """The fast search for string lengths finds the correct strings even if bytes of a string look like a length."""
    values = [f"token {number}" for number in range(1500)]
    values[position:position] = special
    array = struct.pack("<IQ", 8, len(values)) + b"".join(text(value) for value in values)
    path = write(tmp_path / "m.gguf", build_file([key("many", 9, array), key("after", 8, text("the end"))], []))
    metadata = open_gguf(path).metadata
    assert metadata["many"] == values
    assert metadata["after"] == "the end"


@pytest.mark.parametrize("values", [[""] * 2000, ["", "a"] * 1000, ["a"] + [""] * 1999, [""] * 1999 + ["a"]])
def test_arrays_with_empty_strings_are_read(tmp_path: Path, values: list[str]) -> None:
    array = struct.pack("<IQ", STRING, len(values)) + b"".join(text(value) for value in values)
    path = write(tmp_path / "m.gguf", build_file([key("many", ARRAY, array)], []))
    assert open_gguf(path).metadata["many"] == values


def test_long_strings_do_not_prevent_the_fast_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3 has a token of 128 spaces, which are 256 bytes, and merges of twice as many."""
    monkeypatch.setattr(Cursor, "_ends", None)
    for long in ("Ġ" * 128, "Ġ" * 128 + " " + "Ġ" * 128, "x" * 255, "x" * 65535):
        values = [*(f"token {number}" for number in range(700)), long, *map(str, range(800))]
        array = struct.pack("<IQ", STRING, len(values)) + b"".join(text(value) for value in values)
        path = write(tmp_path / "m.gguf", build_file([key("many", ARRAY, array)], []))
        assert open_gguf(path).metadata["many"] == values


@pytest.mark.parametrize(
    "values",
    [
        ["x" * 256 + "\0"],
        ["\0"],
        ["a\0" + "x" * 254, "b"],
        ["x" * 65536 + "\0\0", "y"],
        ["", "x" * 256],
        ["x" * 256, "", "y\0"],
        ["x" * 255, "x" * 257 + "\0", "", "é" * 128],
    ],
)
def test_zero_bytes_in_strings_do_not_split_them(tmp_path: Path, values: list[str]) -> None:
    """The fast search looks for lengths, which end with zero bytes; the content of a string may end so too."""
    array = struct.pack("<IQ", STRING, len(values)) + b"".join(text(value) for value in values)
    path = write(tmp_path / "m.gguf", build_file([key("few", ARRAY, array)], []))
    assert open_gguf(path).metadata["few"] == values


def test_a_truncated_long_array_is_refused(tmp_path: Path) -> None:
    array = struct.pack("<IQ", 8, 1500) + b"".join(text(f"token {number}") for number in range(1500))
    for missing in (1, 9, 400, 8000):
        path = write(tmp_path / "m.gguf", build_file([key("many", 9, array)], []).rstrip(b"\0")[:-missing])
        with pytest.raises(CheckpointError, match=r"past byte|truncated|follow"):
            open_gguf(path)
