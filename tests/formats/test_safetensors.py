"""puna and the package safetensors read each other's files; puna refuses malformed files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS
from puna.formats.new_tensor import NewTensor
from puna.formats.safetensors import open_safetensors, write_safetensors
from tests.helpers.properties import settings
from tests.helpers.torch_files import DTYPES

TYPES = {"f32": DTYPES["float32"], "f16": DTYPES["float16"], "bf16": DTYPES["bfloat16"]}


def raw_bytes(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).view(np.uint8)


tensor_specs = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(TYPES)), st.lists(st.integers(1, 5), max_size=4), st.integers(0, 2**31)),
    max_size=6,
)


def random_array(kind: str, shape: list[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(TYPES[kind])


@settings(max_examples=60)
@given(tensor_specs, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
@pytest.mark.slow
def test_puna_and_safetensors_read_each_others_files(
    tmp_path: Path, spec: dict[str, Any], metadata: dict[str, str]
) -> None:
    values = {name: random_array(*entry) for name, entry in spec.items()}
    reference_file, puna_file = tmp_path / "safetensors", tmp_path / "puna"
    safetensors.numpy.save_file(values, reference_file, metadata or None)
    new = [NewTensor(n, FORMATS[spec[n][0]], v.shape, raw_bytes(v)) for n, v in values.items()]
    write_safetensors(puna_file, new, metadata)
    for path in (reference_file, puna_file):
        file = open_safetensors(path)
        assert file.metadata == metadata and file.tensors.keys() == values.keys()
        for name, value in values.items():
            assert file.tensors[name].format.name == spec[name][0] and file.tensors[name].shape == value.shape
            np.testing.assert_array_equal(file.tensors[name].data, raw_bytes(value))
    for name, value in safetensors.numpy.load_file(puna_file).items():
        assert value.dtype == values[name].dtype and np.array_equal(value, values[name])


def test_reading_returns_views_and_writing_holds_at_most_two_tensors(tmp_path: Path) -> None:
    alive: list[int] = []
    maximum = 0

    def produce(index: int) -> bytes:
        nonlocal maximum
        alive.append(index)
        maximum = max(maximum, len(alive))
        return bytes([index]) * 40

    class TrackedBytes(bytes):
        def __del__(self) -> None:
            alive.pop()

    new = [NewTensor(f"t{i}", FORMATS["f32"], (10,), lambda i=i: TrackedBytes(produce(i))) for i in range(20)]
    write_safetensors(tmp_path / "a", new)
    assert maximum <= 2  # a tensor is produced before the writer's variable releases the previous one
    file = open_safetensors(tmp_path / "a")
    assert [int(tensor.data[0]) for tensor in file.tensors.values()] == list(range(20))
    assert not file.tensors["t3"].raw.flags.owndata and not file.tensors["t3"].raw.flags.writeable


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail() -> bytes:
        raise RuntimeError("the disk of the source broke")

    valid, failing = NewTensor("a", FORMATS["f32"], (1,), bytes(4)), NewTensor("b", FORMATS["f32"], (1,), fail)
    with pytest.raises(RuntimeError, match="broke"):
        write_safetensors(path, [valid, failing])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ([NewTensor("a", FORMATS["q8_0"], (32,), bytes(34))], "is q8_0"),
        ([NewTensor("a", FORMATS["f32"], (2,), bytes(7))], "7 bytes"),
        ([NewTensor("a", FORMATS["f32"], (1,), bytes(4))] * 2, "twice"),
        ([NewTensor("__metadata__", FORMATS["f32"], (1,), bytes(4))], "reserved"),
    ],
)
def test_invalid_tensors_are_not_written(tmp_path: Path, new: list[NewTensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(tmp_path / "a", new)
    assert list(tmp_path.iterdir()) == []


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """Returns the entry of a tensor in the header of a safetensors file."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def build_file(header: Any, data: bytes = bytes(8)) -> bytes:
    """Returns a safetensors file with this header, an object or its text, and these data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


HOSTILE_FILES = {
    "empty": (b"", "empty"),
    "seven bytes": (bytes(7), "at least 8"),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "header of 1000 bytes"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "limit"),
    "not JSON": (build_file(b"{,}"), "not valid JSON"),
    "not UTF-8": (build_file(b'{"\xff": 1}'), "not valid JSON"),
    "not an object": (build_file(b"[1]"), "a JSON list; it must be an object"),
    "deep JSON": (build_file(b'{"a":' + b"[" * 200_000), "not valid JSON"),
    "huge number": (build_file(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "name twice": (build_file(b'{"a":1,"a":1}'), "'a' twice"),
    "metadata that is not text": (build_file({"__metadata__": {"a": 1}}, b""), "strings"),
    "number as an entry": (build_file({"a": 3}), "data_offsets None"),
    "missing offsets": (build_file({"a": {"dtype": "F32", "shape": [2]}}), "data_offsets"),
    "three offsets": (build_file({"a": entry(offsets=[0, 8, 8])}), "two offsets"),
    "offsets in descending order": (build_file({"a": entry(offsets=[8, 0])}), "two offsets"),
    "negative offset": (build_file({"a": entry(offsets=[-8, 0])}), "two offsets"),
    "floating-point offsets": (build_file({"a": entry(offsets=[0.0, 8.0])}), "two offsets"),
    "boolean extent": (build_file({"a": entry(shape=[True, 2])}), "integers"),
    "past the end": (build_file({"a": entry(shape=[4], offsets=[0, 16])}), "ends at byte 16"),
    "unsupported type": (build_file({"a": entry("F4")}), "F4"),
    "type C64": (build_file({"a": entry("C64", [1])}), "puna reads F32"),
    "text as a shape": (build_file({"a": entry(shape="22")}), "shape 22"),
    "shape too large": (build_file({"a": entry(shape=[2**62])}), "8 bytes stored"),
    "a thousand axes": (build_file({"a": entry(shape=[1] * 1000 + [2])}), "up to 8"),
    "gap at the start": (build_file({"a": entry(offsets=[8, 16])}, bytes(16)), "gap"),
    "gap at the end": (build_file({"a": entry()}, bytes(9)), "1 bytes follow"),
    "overlap": (build_file({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlaps"),
}


@pytest.mark.parametrize("case", HOSTILE_FILES)
def test_hostile_files_are_refused(tmp_path: Path, case: str) -> None:
    raw, message = HOSTILE_FILES[case]
    (tmp_path / "hostile").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        open_safetensors(tmp_path / "hostile")
