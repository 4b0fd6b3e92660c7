"""The table of weight formats, and `StoredTensor`, a tensor in one of them.

A format describes a block: `values` consecutive values of one row packed into `bytes` bytes. Plain element types are
blocks of one value. To add a format, write its decoder in `decoders.py` and add one line to `_TABLE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.formats import decoders, grid_decoders
from puna.formats.decoders import Bytes, Floats
from puna.formats.mapped import read_bytes, release

MAX_AXES = 8
"""Maximum number of axes of a tensor; LLaMA weights have one or two."""

_CHUNK = 1 << 16
"""Values decoded at once, so that the temporary arrays of a tensor of any size fit in the second-level cache."""


@dataclass(frozen=True)
class BlockFormat:
    """The storage of `values` consecutive values of a row in `bytes` bytes.

    Attributes:
        name: ggml's name; the key in `FORMATS`.
        ggml_id: ggml's number of the type, as GGUF files store it.
        unpack: (n, bytes) uint8 -> (n, values) float32.
        safetensors, torch, torch_storage: the element type's name in safetensors, in torch and in torch's pickles; None
            for a block of several values.
        pack: float32 of any shape -> bytes, rounded to nearest, ties to even. None for a block of several values, which
            `puna.native.quantize` packs.
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
        """Returns the bytes of a tensor; raises CheckpointError if its rows (last axis) are not entire blocks."""
        row = shape[-1] if shape else 1
        if row % self.values:
            raise CheckpointError(f"rows of {row} values cannot be split into {self.name} blocks of {self.values}")
        return math.prod(shape) // self.values * self.bytes

    def row_size(self, shape: tuple[int, ...]) -> int:
        """Returns the bytes of one row, the first axis, of a tensor."""
        return self.size(shape) // shape[0]

    def pack_scaled(self, values: Floats, name: str) -> Bytes:
        """Packs products of scales in a plain format.

        Raises:
            CheckpointError: a product is beyond the range of the format; the message names the matrix `name`.
        """
        assert self.pack is not None, "the format is plain"
        packed = self.pack(values)
        if not np.isfinite(self.decode(packed.reshape(-1))).all():
            raise CheckpointError(
                f"{name}: the scales result in values beyond {self.torch}'s range; the file is damaged"
            )
        return packed

    def decode(self, data: Bytes) -> Floats:
        """Unpacks the blocks in flat bytes into a new, flat, writable float32 array."""
        blocks = data.reshape(-1, self.bytes)
        out = np.empty((len(blocks), self.values), np.float32)
        step = max(1, _CHUNK // self.values)
        # If a damaged scale is infinite or NaN, so are its block's values: callers decide whether that is an error.
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(blocks), step):
                out[start : start + step] = self.unpack(blocks[start : start + step])
        return out.reshape(-1)


@dataclass(frozen=True)
class StoredTensor:
    """A named tensor stored in a file.

    Attributes:
        shape: outermost axis first.
        raw: the bytes, a view of a mapped file, of any shape and strides such that `ravel` returns the blocks in order.

    Raises:
        CheckpointError: too many axes, an axis that is not positive, or a number of bytes that does not fit the shape.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    raw: Bytes

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_AXES or not all(0 < extent < 2**63 for extent in self.shape):
            raise CheckpointError(
                f"tensor {self.name!r} has the shape {str(self.shape)[:80]}; puna reads up to {MAX_AXES} positive axes"
            )
        expected = self.format.size(self.shape)
        if self.raw.size != expected:
            kind = f"{self.format.name} of shape {self.shape}"
            raise CheckpointError(f"tensor {self.name!r}: {self.raw.size} bytes stored, but {kind} needs {expected}")

    @property
    def row_memory(self) -> int:
        """Memory in bytes that reading one row needs: the size of the row."""
        return self.format.row_size(self.shape)

    @property
    def data(self) -> Bytes:
        """The flat bytes, read from the file."""
        return np.ascontiguousarray(read_bytes(self.raw)).reshape(-1)

    def to_float32(self) -> Floats:
        """Returns the values as a new array of `shape`."""
        return self.format.decode(self.data).reshape(self.shape)

    def take(self, rows: NDArray[np.intp]) -> Bytes:
        """Returns the bytes of rows (elements of a vector), (rows, bytes per row), read from the file."""
        raw = self.raw.reshape(self.shape[0], -1) if self.raw.ndim == 1 else self.raw
        consecutive = len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        if consecutive:
            selection = read_bytes(raw[int(rows[0]) : int(rows[-1]) + 1])
        elif raw.flags.c_contiguous and len(rows):
            selection = np.stack([read_bytes(raw[row]) for row in rows])
        else:
            selection = (read_bytes(raw) if len(rows) else raw)[rows]
        return selection.reshape(len(rows), math.prod(selection.shape[1:]))

    def release(self) -> None:
        """Lets the system drop the file's bytes from memory; later accesses read the file again."""
        release(self.raw)


_TABLE = (
    # name, values, bytes, ggml_id, unpack, safetensors, torch, torch_storage, pack
    BlockFormat("f32", 1, 4, 0, decoders.unpack_f32, "F32", "float32", "FloatStorage", decoders.pack_f32),
    BlockFormat("f16", 1, 2, 1, decoders.unpack_f16, "F16", "float16", "HalfStorage", decoders.pack_f16),
    BlockFormat("bf16", 1, 2, 30, decoders.unpack_bf16, "BF16", "bfloat16", "BFloat16Storage", decoders.pack_bf16),
    BlockFormat("q8_0", 32, 34, 8, decoders.unpack_q8_0),
    BlockFormat("q4_0", 32, 18, 2, decoders.unpack_q4_0),
    BlockFormat("q4_1", 32, 20, 3, decoders.unpack_q4_1),
    BlockFormat("q5_0", 32, 22, 6, decoders.unpack_q5_0),
    BlockFormat("q5_1", 32, 24, 7, decoders.unpack_q5_1),
    BlockFormat("iq4_nl", 32, 18, 20, decoders.unpack_iq4_nl),
    BlockFormat("q2_K", 256, 84, 10, decoders.unpack_q2_k),
    BlockFormat("q3_K", 256, 110, 11, decoders.unpack_q3_k),
    BlockFormat("q4_K", 256, 144, 12, decoders.unpack_q4_k),
    BlockFormat("q5_K", 256, 176, 13, decoders.unpack_q5_k),
    BlockFormat("q6_K", 256, 210, 14, decoders.unpack_q6_k),
    BlockFormat("iq4_xs", 256, 136, 23, decoders.unpack_iq4_xs),
    BlockFormat("iq3_s", 256, 110, 21, grid_decoders.unpack_iq3_s),
    BlockFormat("iq3_xxs", 256, 98, 18, grid_decoders.unpack_iq3_xxs),
    BlockFormat("iq2_s", 256, 82, 22, grid_decoders.unpack_iq2_s),
    BlockFormat("iq2_xs", 256, 74, 17, grid_decoders.unpack_iq2_xs),
    BlockFormat("iq2_xxs", 256, 66, 16, grid_decoders.unpack_iq2_xxs),
    BlockFormat("iq1_m", 256, 56, 29, grid_decoders.unpack_iq1_m),
    BlockFormat("iq1_s", 256, 50, 19, grid_decoders.unpack_iq1_s),
    BlockFormat("tq2_0", 256, 66, 35, decoders.unpack_tq2_0),
    BlockFormat("tq1_0", 256, 54, 34, decoders.unpack_tq1_0),
    BlockFormat("mxfp4", 32, 17, 39, decoders.unpack_mxfp4),
)

FORMATS: dict[str, BlockFormat] = {item.name: item for item in _TABLE}
"""Every format of weights, by ggml's name."""

I8 = BlockFormat("i8", 1, 1, 24, decoders.unpack_i8, "I8", "int8", "CharStorage")
U8 = BlockFormat("u8", 1, 1, -1, decoders.unpack_u8, "U8", "uint8", "ByteStorage")
I32 = BlockFormat("i32", 1, 4, 26, decoders.unpack_i32, "I32")
I64 = BlockFormat("i64", 1, 8, 27, decoders.unpack_i64, "I64")
F8 = BlockFormat("f8_e4m3", 1, 1, -1, decoders.unpack_f8_e4m3, "F8_E4M3")

_OTHERS = {"BOOL": 1, "I16": 2, "U16": 2, "U32": 4, "U64": 8, "F64": 8, "F8_E5M2": 1, "F8_E8M0": 1}
"""Other types of safetensors files and their bytes: opened without error, so that the error names the quantisation."""

PARTS = (I8, U8, I32, I64, F8, *(
    BlockFormat(name.lower(), 1, size, -1, decoders.unpack_unknown, name) for name, size in _OTHERS.items()
))  # fmt: skip
"""Types of the parts of packed matrices (grouped.py and scaled.py), never of weights. ggml has no u8 and f8."""
