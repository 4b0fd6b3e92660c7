"""puna reads files of torch.save like torch.load, and refuses hostile files, such as pickles that call functions."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.errors import CheckpointError
from puna.formats.torch_zip import open_torch_zip

torch = pytest.importorskip("torch")


def save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def state_dict() -> dict[str, torch.Tensor]:
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    return {
        "plain": base,
        "transposed": base.t(),
        "slice": base[1:5:2, 3:],
        "row": base[2],
        "shared": base,
        "half": base.half(),
        "bfloat": base.bfloat16().t(),
        "scalar": torch.tensor(3.5),
        "one": base[:1].t(),
        "three": torch.randn(2, 3, 4).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(base * 2),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_with_any_strides_are_read(tmp_path: Path, protocol: int) -> None:
    path = save(tmp_path / "a", OrderedDict(state_dict()), pickle_protocol=protocol)
    tensors = open_torch_zip(path).tensors
    expected = torch.load(path, weights_only=False)
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        assert (
            tensors[name].shape == tuple(value.shape) and tensors[name].format.torch == str(value.dtype).split(".")[1]
        )
        np.testing.assert_array_equal(tensors[name].to_float32(), value.detach().float().numpy())
    assert not tensors["plain"].data.flags.owndata  # a view of the file


def test_a_state_dict_with_metadata_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    tensors = open_torch_zip(save(tmp_path / "a", module.state_dict())).tensors
    assert list(tensors) == list(module.state_dict())
    np.testing.assert_array_equal(tensors["0.weight"].to_float32(), module[0].weight.detach().numpy())


def test_zip64_files_of_other_writers_are_read(tmp_path: Path) -> None:
    source = zipfile.ZipFile(save(tmp_path / "a", {"w": torch.arange(6.0)}))
    with zipfile.ZipFile(tmp_path / "b", "w") as target:
        for item in source.infolist():
            with target.open(item.filename, "w", force_zip64=True) as file:
                file.write(source.read(item))
        target.comment = b"a comment PK\5\6"[:9]
    np.testing.assert_array_equal(open_torch_zip(tmp_path / "b").tensors["w"].to_float32(), np.arange(6.0))


def test_sizes_in_the_zip64_field_are_read(tmp_path: Path) -> None:
    """Entries beyond 4 GB need the zip64 field; smaller entries may use it too."""
    raw = bytearray(save(tmp_path / "a", {"w": torch.arange(6.0)}).read_bytes())
    at = raw.index(b"PK\1\2")
    name_size = struct.unpack_from("<H", raw, at + 28)[0]
    compressed_size, uncompressed_size, header_offset = (
        *struct.unpack_from("<2I", raw, at + 20),
        struct.unpack_from("<I", raw, at + 42)[0],
    )
    extra = struct.pack("<HH3Q", 1, 24, uncompressed_size, compressed_size, header_offset)
    struct.pack_into("<2I", raw, at + 20, 2**32 - 1, 2**32 - 1)
    struct.pack_into("<I", raw, at + 42, 2**32 - 1)
    struct.pack_into("<H", raw, at + 30, len(extra))
    raw[at + 46 + name_size : at + 46 + name_size] = extra
    end = raw.index(b"PK\6\6")
    struct.pack_into("<Q", raw, end + 40, struct.unpack_from("<Q", raw, end + 40)[0] + len(extra))
    locator = raw.index(b"PK\6\7")
    struct.pack_into("<Q", raw, locator + 8, end)
    (tmp_path / "b").write_bytes(raw)
    np.testing.assert_array_equal(open_torch_zip(tmp_path / "b").tensors["w"].to_float32(), np.arange(6.0))


class Evil:
    """An object whose unpickling creates a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/puna-was-here",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Evil()}, "posix.system"),
        ({"a": torch.ones(1).expand(5)}, "repeat elements"),
        ({"a": torch.ones(2, dtype=torch.int64)}, "LongStorage"),
        ({"a": torch.ones(2, dtype=torch.float64)}, "DoubleStorage"),
        ({"a": torch.ones(2, dtype=torch.float8_e4m3fn)}, "_rebuild_tensor_v3"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({"model": {"a": torch.ones(1)}}, "'model' is a dict"),
        ([torch.ones(1)], "holds a list"),
        ({1: torch.ones(1)}, "entry 1 is"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        ({"a": torch.ones(0, 3)}, "out of range"),
        ({"a": torch.ones(3).to_sparse()}, "_rebuild_sparse_tensor"),
    ],
)
def test_anything_but_a_state_dict_of_weights_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_torch_zip(save(tmp_path / "a", value))
    assert not Path("/tmp/puna-was-here").exists()


def test_the_format_of_pytorch_before_1_6_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a", state_dict(), _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6.*weights_only"):
        open_torch_zip(path)


def rezip(path: Path, changes: dict[str, bytes | None], **options: Any) -> Path:
    """Writes a file of torch.save with entries replaced, added or (None) removed; returns its path."""
    with zipfile.ZipFile(save(path, {"w": torch.arange(6.0)})) as source:
        entries = {item.filename.split("/", 1)[1]: source.read(item) for item in source.infolist()}
    with zipfile.ZipFile(path, "w", **options) as target:
        for name, data in (entries | changes).items():
            if data is not None:
                target.writestr(f"a/{name}", data)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.pkl": None}, "0 entries named data.pkl"),
        ({"data/0": None}, "storage '0' is missing"),
        ({"data/0": bytes(23)}, "has 23 bytes"),
        ({"byteorder": b"big"}, "byte order"),
        ({"constants.pkl": b""}, "TorchScript"),
    ],
)
def test_invalid_archives_are_refused(tmp_path: Path, changes: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_torch_zip(rezip(tmp_path / "a", changes))


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="compressed"):
        open_torch_zip(rezip(tmp_path / "a", {}, compression=zipfile.ZIP_DEFLATED))


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\6tQ"


def tensor_pickle(
    offset: bytes = b"K\0", shape: bytes = b"K\6\x85", strides: bytes = b"K\1\x85", rest: bytes = b"\x89N"
) -> bytes:
    """Returns a pickled state dict with one tensor, whose fields are pickle opcodes."""
    return b"\x80\2}X\1\0\0\0w" + TENSOR + b"(" + STORAGE + offset + shape + strides + rest + b"tRs."


PICKLES = {
    "empty": (b"", "needs 1 bytes"),
    "no end": (b"\x80\2}", "needs 1 bytes"),
    "huge text": (b"\x80\4\x8d" + b"\xff" * 8, "the pickle needs"),
    "huge memo": (b"\x80\2}r\xff\xff\xff\xff.", None),
    "unknown opcode": (b"\x80\2i.", "opcode b'i'"),
    "build an instance": (b"\x80\2cos\nsystem\n)\x81.", "os.system"),
    "global from the stack": (b"\x80\4\x8c\x08builtins\x8c\4eval\x93.", "builtins.eval"),
    "global with a tuple as its module": (b"\x80\4)\x8c\4eval\x93.", "not text"),
    "unfinished global": (b"\x80\2cos", "unterminated name"),
    "calling a storage": (b"\x80\2ctorch\nFloatStorage\n)R.", "not a function"),
    "recall an empty memo item": (b"\x80\2h\7.", "memo item 7"),
    "pop from an empty stack": (b"\x80\2.", "pops more values than it has pushed"),
    "pop across a mark": (b"\x80\2}(s.", "pops more"),
    "tuple without a mark": (b"\x80\2t.", "needs a mark"),
    "key without value": (b"\x80\2}(K\1u.", "without a value"),
    "tuple as key": (b"\x80\2}()K\1u.", "tuple as a key"),
    "append to a dict": (b"\x80\2}K\1a.", "non-list"),
    "text not UTF-8": (b"\x80\2X\1\0\0\0\xff.", "not UTF-8"),
    "wrong arguments": (b"\x80\2" + TENSOR + b"K\1\x85R.", "wrong arguments"),
    "persistent id": (b"\x80\2K\1Q.", "not a storage's"),
    "valid": (tensor_pickle(), None),
    "offset past the end": (tensor_pickle(offset=b"K\1"), "reach element 6"),
    "negative offset": (tensor_pickle(offset=b"J\xff\xff\xff\xff"), "out of range"),
    "negative stride": (tensor_pickle(strides=b"J\xff\xff\xff\xff\x85"), "out of range"),
    "stride past the end": (tensor_pickle(strides=b"K\2\x85"), "reach element 10"),
    "huge extent": (tensor_pickle(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), "out of range"),
    "huge shape": (tensor_pickle(shape=b"J\xff\xff\xff\x7f" * 2 + b"\x86", strides=b"K\0K\0\x86"), "repeat"),
    "axes disagree": (tensor_pickle(strides=b"K\1K\1\x86"), "disagree"),
    "shape is a number": (tensor_pickle(shape=b"K\6"), "disagree"),
    "too large": (b"\x80\2" + b"N" * 2**22 + b".", "the limit is"),
    "name twice": (b"\x80\2}(" + (b"X\1\0\0\0wN") * 2 + b"u.", "'w' twice"),
}


"""By name: a pickle, and a part of the error, or None if the file is read."""


@pytest.mark.parametrize("case", PICKLES)
def test_handmade_pickles_load_or_are_refused(tmp_path: Path, case: str) -> None:
    raw, message = PICKLES[case]
    path = rezip(tmp_path / "a", {"data.pkl": raw})
    if message is None:
        open_torch_zip(path)
        return
    with pytest.raises(CheckpointError, match=message):
        open_torch_zip(path)


@pytest.mark.slow
def test_deeply_nested_values_do_not_overflow_the_stack(tmp_path: Path) -> None:
    depth = 200_000
    for raw in (b"]" * depth + b"a" * (depth - 1) + b".", b")" + b"\x85" * depth + b"."):
        with pytest.raises(CheckpointError, match="a state dict"):
            open_torch_zip(rezip(tmp_path / "a", {"data.pkl": b"\x80\2" + raw}))


def test_a_list_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    buffer = io.BytesIO()
    pickle.dump({"w": loop}, buffer, protocol=2)
    with pytest.raises(CheckpointError, match="'w' is a list"):
        open_torch_zip(rezip(tmp_path / "a", {"data.pkl": buffer.getvalue()}))


@pytest.mark.parametrize("part", [b"PK\5\6", b"PK\6\6", b"PK\1\2", b"PK\3\4"])
def test_damage_to_each_structure_of_the_zip_is_detected(tmp_path: Path, part: bytes) -> None:
    raw = bytearray(save(tmp_path / "a", {"w": torch.arange(6.0)}).read_bytes())
    raw[raw.rindex(part) + 1] ^= 0xFF
    (tmp_path / "b").write_bytes(raw)
    with pytest.raises(CheckpointError):
        open_torch_zip(tmp_path / "b")


def test_overlapping_and_duplicate_entries_are_refused(tmp_path: Path) -> None:
    raw = save(tmp_path / "a", {"w": torch.arange(6.0)}).read_bytes()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "b", "w") as target:
        target.writestr("a/data.pkl", b"")
        target.writestr("a/data.pkl", b"")
    with pytest.raises(CheckpointError, match="twice"):
        open_torch_zip(tmp_path / "b")
    enlarged = bytearray(raw)
    entry = raw.index(b"PK\1\2")
    struct.pack_into("<2I", enlarged, entry + 20, 2000, 2000)
    (tmp_path / "c").write_bytes(enlarged)
    with pytest.raises(CheckpointError, match=r"overlap|ends at"):
        open_torch_zip(tmp_path / "c")
