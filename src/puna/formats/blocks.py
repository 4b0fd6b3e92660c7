"""The one table of weight formats: how a run of values along a row is packed into bytes, and how it is unpacked.

A format is a block: `values` consecutive numbers of one row in `bytes` bytes. Plain element types are blocks of one. To
add a format, write its `_Layout` and decoder here, add one line to `_TABLE`, and one to the table's test.

Layouts follow ggml (`ggml-common.h`, all fields little-endian). Decoders keep ggml's order of operations, in float32,
so that their values are bit-identical to `gguf.quants.dequantize`. Nothing here knows files, tensor names or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from puna.errors import CheckpointError
from puna.formats.mapped import release

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

MAX_AXES = 8
"""Most axes a tensor may have; a LLaMA's have two."""

_CHUNK = 1 << 16
"""Values decoded at once: the temporaries then stay inside the second-level cache, whatever the tensor's size."""


@dataclass(frozen=True)
class BlockFormat:
    """How `values` consecutive values of a row are stored in `bytes` bytes.

    Attributes:
        name: ggml's name; the key in `FORMATS`.
        ggml_id: number of the type in a GGUF file.
        unpack: (n, bytes) uint8 -> (n, values) float32.
        pack: float32 of any shape -> bytes, rounded to nearest, ties to even; None for a block of many values, which
            `puna.native.quantize` makes.
        safetensors, torch, torch_storage: the element type's name elsewhere; None for a block of many values.
    """

    name: str
    values: int
    bytes: int
    ggml_id: int
    unpack: Callable[[Bytes], Floats]
    safetensors: str | None = None
    torch: str | None = None
    torch_storage: str | None = None
    pack: Callable[[Floats], Bytes] | None = None

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes that a tensor of `shape` takes; its rows, the last axis, must be whole blocks."""
        row = shape[-1] if shape else 1
        if row % self.values:
            raise CheckpointError(f"rows of {row} values; {self.name} packs {self.values} at a time")
        return math.prod(shape) // self.values * self.bytes

    def decode(self, data: Bytes) -> Floats:
        """Unpacks whole blocks from flat bytes into a new, flat, writable array."""
        blocks = data.reshape(-1, self.bytes)
        out = np.empty((len(blocks), self.values), np.float32)
        step = max(1, _CHUNK // self.values)
        # A scale may be infinite or NaN; so are its values then, which is not this function's to judge.
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(blocks), step):
                out[start : start + step] = self.unpack(blocks[start : start + step])
        return out.reshape(-1)


@dataclass(frozen=True)
class StoredTensor:
    """A named tensor as a file holds it.

    Attributes:
        shape: outermost axis first.
        raw: the bytes; any shape and strides whose ravelled order is that of the tensor's blocks. A view of the file.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    raw: Bytes

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_AXES or not all(0 < extent < 2**63 for extent in self.shape):
            raise CheckpointError(
                f"tensor {self.name!r} has the shape {str(self.shape)[:80]}; up to {MAX_AXES} positive extents are read"
            )
        expected = self.format.size(self.shape)
        if self.raw.size != expected:
            kind = f"{self.format.name} of shape {self.shape}"
            raise CheckpointError(f"tensor {self.name!r}: {self.raw.size} bytes stored; {kind} takes {expected}")

    @property
    def data(self) -> Bytes:
        """The bytes, flat; a view of the file unless the file's order differs from the tensor's."""
        return np.ascontiguousarray(self.raw).reshape(-1)

    def to_float32(self) -> Floats:
        """The values as a new array of `shape`."""
        return self.format.decode(self.data).reshape(self.shape)

    def take(self, rows: NDArray[np.intp]) -> Bytes:
        """Some rows as bytes, (rows, bytes per row), of a vector one value each; a view where they are consecutive."""
        flat = self.raw.ndim == 1
        raw = self.raw.reshape(self.shape[0], -1) if flat else self.raw
        consecutive = len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        found = raw[int(rows[0]) : int(rows[-1]) + 1] if consecutive else raw[rows]
        return found.reshape(len(rows), math.prod(found.shape[1:]))

    def release(self) -> None:
        """Gives back the memory in which the file's bytes lie; they are read again when they are asked for again."""
        release(self.raw)


# Decoders. Each takes (n, bytes) and gives (n, values); a structured dtype names the fields of a block in file order.


def _fields(blocks: Bytes, layout: np.dtype[np.void]) -> NDArray[np.void]:
    return np.ascontiguousarray(blocks).view(layout)[:, 0]


def _layout(*fields: tuple[str, DTypeLike] | tuple[str, DTypeLike, int]) -> np.dtype[np.void]:
    return np.dtype(list(fields))


def _column(halves: NDArray[np.float16]) -> Floats:
    return halves.astype(np.float32)[:, None]


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """Per `run` bytes first all low halves, then all high halves: (n, k) -> (n, k / run, 2, run)."""
    runs = packed.reshape(len(packed), -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=2)


def _pairs(packed: Bytes) -> Bytes:
    """Two bits a value; per 32 bytes first all lowest pairs, then the next: (n, k) -> (n, k / 32, 4, 32)."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    pairs: Bytes = np.bitwise_and(packed.reshape(len(packed), -1, 1, 32) >> shifts, 3, dtype=np.uint8)
    return pairs


def _f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4")


def _f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _i32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<i4").astype(np.float32)


def _to_f32(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)


def _to_f16(values: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values).astype("<f2").view(np.uint8)


def _to_bf16(values: Floats) -> Bytes:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (bits >> 16 & 1) + 0x7FFF) >> 16).astype("<u2")
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16).astype("<u2") | 0x40
    return rounded.view(np.uint8)


_Q8_0 = _layout(("d", "<f2"), ("q", "i1", 32))
_Q4_0 = _layout(("d", "<f2"), ("q", "u1", 16))
_Q4_1 = _layout(("d", "<f2"), ("m", "<f2"), ("q", "u1", 16))
_Q5_0 = _layout(("d", "<f2"), ("high", "u1", 4), ("q", "u1", 16))
_Q5_1 = _layout(("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16))


def _q8_0(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q8_0)
    return b["q"].astype(np.float32) * _column(b["d"])


def _q4_0(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q4_0)
    q = _nibbles(b["q"], 16).reshape(-1, 32)
    return _column(b["d"]) * (q.astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q4_1)
    q = _nibbles(b["q"], 16).reshape(-1, 32)
    return _column(b["d"]) * q.astype(np.float32) + _column(b["m"])


def _five_bits(b: NDArray[np.void]) -> Floats:
    high = np.unpackbits(b["high"], axis=1, bitorder="little")  # (n, 32)
    q = _nibbles(b["q"], 16).reshape(-1, 32) | high << 4
    return q.astype(np.float32)


def _q5_0(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q5_0)
    return _column(b["d"]) * (_five_bits(b) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q5_1)
    return _column(b["d"]) * _five_bits(b) + _column(b["m"])


_IQ4_NL_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The sixteen levels of iq4_nl: `kvalues_iq4nl` in ggml-common.h."""


def _iq4_nl(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q4_0)
    q = _nibbles(b["q"], 16).reshape(-1, 32)
    return _column(b["d"]) * _IQ4_NL_VALUES[q]


# The K formats: 256 values in sub-blocks, whose small integer scales share one or two float16.

_Q2_K = _layout(("scales", "u1", 16), ("q", "u1", 64), ("d", "<f2"), ("dmin", "<f2"))
_Q3_K = _layout(("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), ("d", "<f2"))
_Q4_K = _layout(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("q", "u1", 128))
_Q5_K = _layout(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128))
_Q6_K = _layout(("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2"))


def _q2_k(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q2_K)
    scale = _column(b["d"]) * (b["scales"] & 15).astype(np.float32)  # (n, 16)
    least = _column(b["dmin"]) * (b["scales"] >> 4).astype(np.float32)
    q = _pairs(b["q"]).reshape(-1, 16, 16).astype(np.float32)
    return (scale[:, :, None] * q - least[:, :, None]).reshape(-1, 256)


def _q3_k(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q3_K)
    # 16 scales of six bits: bytes 0-7 hold the low four of each, bytes 8-11 the high two.
    low = _nibbles(b["scales"][:, :8], 8).reshape(-1, 16)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (b["scales"][:, None, 8:] >> shifts & 3).reshape(-1, 16)
    scales = (low | high << 4).astype(np.float32) - 32
    # A value's third bit lies in `high`, bit k of byte j for value 32 k + j; where it is *clear*, 4 is subtracted.
    third = b["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n, 8, 32)
    q = _pairs(b["q"]).reshape(-1, 8, 32).astype(np.float32) - (4 - (third << 2)).astype(np.float32)
    return ((_column(b["d"]) * scales)[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def _six_bit_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of six bits from twelve bytes: (n, 12) -> (n, 8) and (n, 8).

    Bytes 0-3 and 4-7 hold the first four of each in their low six bits; their top two bits belong to the last four,
    whose low halves share bytes 8-11.
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scaled(b: NDArray[np.void], q: Floats) -> Floats:
    scales, minima = _six_bit_scales(b["scales"])
    scale, least = _column(b["d"]) * scales, _column(b["dmin"]) * minima  # (n, 8)
    return (scale[:, :, None] * q - least[:, :, None]).reshape(-1, 256)


def _q4_k(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q4_K)
    return _scaled(b, _nibbles(b["q"], 32).reshape(-1, 8, 32).astype(np.float32))


def _q5_k(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q5_K)
    fifth = b["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n, 8, 32)
    q = _nibbles(b["q"], 32).reshape(-1, 8, 32) | fifth << 4
    return _scaled(b, q.astype(np.float32))


def _q6_k(blocks: Bytes) -> Floats:
    b = _fields(blocks, _Q6_K)
    low = _nibbles(b["low"], 64).reshape(-1, 2, 4, 32)
    q = (low | _pairs(b["high"]) << 4).astype(np.float32) - 32
    scale = _column(b["d"]) * b["scales"].astype(np.float32)  # (n, 16)
    return (scale[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


_TABLE = (
    #            name  values bytes ggml  unpack  safetensors  torch    torch's storage class, pack
    BlockFormat("f32", 1, 4, 0, _f32, "F32", "float32", "FloatStorage", _to_f32),
    BlockFormat("f16", 1, 2, 1, _f16, "F16", "float16", "HalfStorage", _to_f16),
    BlockFormat("bf16", 1, 2, 30, _bf16, "BF16", "bfloat16", "BFloat16Storage", _to_bf16),
    BlockFormat("q8_0", 32, 34, 8, _q8_0),
    BlockFormat("q4_0", 32, 18, 2, _q4_0),
    BlockFormat("q4_1", 32, 20, 3, _q4_1),
    BlockFormat("q5_0", 32, 22, 6, _q5_0),
    BlockFormat("q5_1", 32, 24, 7, _q5_1),
    BlockFormat("iq4_nl", 32, 18, 20, _iq4_nl),
    BlockFormat("q2_K", 256, 84, 10, _q2_k),
    BlockFormat("q3_K", 256, 110, 11, _q3_k),
    BlockFormat("q4_K", 256, 144, 12, _q4_k),
    BlockFormat("q5_K", 256, 176, 13, _q5_k),
    BlockFormat("q6_K", 256, 210, 14, _q6_k),
)

FORMATS: dict[str, BlockFormat] = {item.name: item for item in _TABLE}
"""Every format that weights may have, under ggml's name."""

I32 = BlockFormat("i32", 1, 4, 26, _i32, "I32")
"""Whole numbers, in which other packings hide (`puna.formats.grouped`); no weight of a model as they are."""
