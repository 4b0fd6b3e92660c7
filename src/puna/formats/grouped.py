"""Four-bit matrices packed by GPTQ and AWQ, and their conversion to ggml's blocks.

Both store a matrix of (outputs, inputs) as integers q from 0 to 15 and, for each group of inputs and each output, a
float16 scale s and an integer zero point z:

    weight[o, i] = s[group(i), o] * (q[o, i] - z[group(i), o])

    qweight  int32, eight q per word     GPTQ (inputs / 8, outputs): nibble k of word w is input 8 w + k
                                         AWQ  (inputs, outputs / 8): nibbles are outputs 0 2 4 6 1 3 5 7 of the word
    qzeros   int32 (groups, outputs / 8) GPTQ: z - 1 (v2: z), outputs in order; AWQ: z, outputs as in qweight
    scales   float16 (groups, outputs)
    g_idx    int32 (inputs,)             GPTQ only, optional: the group of each input; default: consecutive groups

Sources: `pack` of AutoGPTQ's QuantLinear and of AutoAWQ's WQLinear_GEMM. To add a packing, write its two functions, and
add one line to `PACKINGS` and to its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, I32, BlockFormat, StoredTensor
from puna.formats.parallel import unpack_rows
from puna.lazy import cached_property

Bytes = NDArray[np.uint8]
Index = NDArray[np.intp]

BITS = 4
_PER_WORD = 32 // BITS
_BLOCK = 32

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output of each nibble of a word, lowest bits first."""


@dataclass(frozen=True)
class Packing:
    """The layout of integers in one of the packings.

    Attributes:
        name: the name in messages.
        packed_axis: the axis of `qweight` along which a word holds eight integers: 0 inputs, 1 outputs.
        numbers: unpacks q: (qweight, indices of n outputs) -> (n, inputs), uint8.
        zeros: unpacks z: qzeros -> (groups, outputs), uint8.
    """

    name: str
    packed_axis: int
    numbers: Callable[[NDArray[np.int32], Index], Bytes]
    zeros: Callable[[NDArray[np.int32]], Bytes]


def _nibbles(words: NDArray[np.int32]) -> Bytes:
    """Unpacks the eight nibbles of each word, lowest bits first: (..., n) -> (..., n, 8)."""
    pairs = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    numbers = np.empty((*pairs.shape, 2), np.uint8)
    np.bitwise_and(pairs, 15, out=numbers[..., 0])
    np.right_shift(pairs, 4, out=numbers[..., 1])
    return numbers.reshape(*words.shape, _PER_WORD)


def _gptq_numbers(words: NDArray[np.int32], outputs: Index) -> Bytes:
    return _nibbles(words[:, outputs].T).reshape(len(outputs), -1)


def _gptq_zeros(words: NDArray[np.int32]) -> Bytes:
    zeros: Bytes = np.bitwise_and(_gptq_v2_zeros(words) + np.uint8(1), 15, dtype=np.uint8)
    return zeros


def _gptq_v2_zeros(words: NDArray[np.int32]) -> Bytes:
    return _nibbles(words).reshape(len(words), -1)


def _awq_numbers(words: NDArray[np.int32], outputs: Index) -> Bytes:
    columns, column_of = np.unique(outputs // _PER_WORD, return_inverse=True)
    by_input = np.ascontiguousarray(words[:, columns]).view(np.uint8).reshape(len(words), -1)
    pairs = np.ascontiguousarray(by_input.T).reshape(len(columns), 4, -1)
    numbers = np.empty((len(columns), _PER_WORD, len(words)), np.uint8)
    numbers[:, _AWQ_ORDER[0::2]] = pairs & 15
    numbers[:, _AWQ_ORDER[1::2]] = pairs >> 4
    return numbers[column_of, outputs % _PER_WORD]


def _awq_zeros(words: NDArray[np.int32]) -> Bytes:
    return _nibbles(words)[..., np.argsort(_AWQ_ORDER)].reshape(len(words), -1)


PACKINGS = {
    ("gptq", "gptq"): Packing("GPTQ", 0, _gptq_numbers, _gptq_zeros),
    ("gptq", "gptq_v2"): Packing("GPTQ v2", 0, _gptq_numbers, _gptq_v2_zeros),
    ("awq", "gemm"): Packing("AWQ", 1, _awq_numbers, _awq_zeros),
}
"""Every packing that puna reads, by the method and version in quantization_config."""


@dataclass(frozen=True)
class GroupedMatrix:
    """A matrix in one of the packings, whose rows are returned in a format of `FORMATS`.

    If every zero point is 8, the format is q4_0, which is exact; otherwise q4_1, with the minimum -s z rounded to
    float16. If the inputs of a block of 32 belong to several groups ("act order"), or the scales are not float16, the
    format is the type of the scales, to which values are rounded. Kernels for GPUs also round to float16.

    Attributes:
        group_size: number of inputs that share scales and zero points; -1: all inputs.

    Raises:
        CheckpointError: the types or shapes of the parts do not fit each other.
    """

    name: str
    packing: Packing
    group_size: int
    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor
    g_idx: StoredTensor | None

    def __post_init__(self) -> None:
        floats = tuple(form for form in FORMATS.values() if form.pack is not None)
        for part, forms, axes in (
            (self.qweight, (I32,), 2), (self.qzeros, (I32,), 2), (self.scales, floats, 2), (self.g_idx, (I32,), 1),
        ):  # fmt: skip
            if part is not None and (len(part.shape) != axes or part.format not in forms):
                raise CheckpointError(
                    f"tensor {part.name!r} is {part.format.name} of shape {part.shape}; {self.packing.name} needs "
                    f"{' or '.join(form.name for form in forms)} with {axes} axes here"
                )
        outputs, inputs = self.shape
        groups = 1 if self.group_size == -1 else -(-inputs // self.group_size)
        packed_groups = (groups, outputs // _PER_WORD)
        if self.scales.shape != (groups, outputs) or self.qzeros.shape != packed_groups:
            raise CheckpointError(
                f"{self.name}: scales of shape {self.scales.shape} and qzeros of {self.qzeros.shape} do not fit "
                f"{outputs} outputs and {inputs} inputs in groups of {self.group_size}, which need "
                f"{(groups, outputs)} and {packed_groups}. The files do not fit the quantisation settings"
            )
        if self.g_idx is not None and (
            self.g_idx.shape != (inputs,) or self.groups.min() < 0 or self.groups.max() >= groups
        ):
            raise CheckpointError(
                f"tensor {self.g_idx.name!r} must assign one of {groups} groups to each of {inputs} inputs; "
                "the file is damaged"
            )

    @property
    def method(self) -> str:
        """The name of the method in messages and reports."""
        return self.packing.name

    @property
    def shape(self) -> tuple[int, int]:
        """The shape, (outputs, inputs)."""
        first, second = self.qweight.shape
        return (second, first * _PER_WORD) if self.packing.packed_axis == 0 else (second * _PER_WORD, first)

    @cached_property
    def groups(self) -> Index:
        """The group of each input, (inputs,)."""
        if self.g_idx is None:
            inputs = self.shape[1]
            return np.arange(inputs) // (inputs if self.group_size == -1 else self.group_size)
        return _words(self.g_idx).astype(np.intp)

    @cached_property
    def format(self) -> BlockFormat:
        """The format that `take` returns; determining it reads the zero points and groups."""
        groups, inputs = self.groups, self.shape[1]
        groups_fit = inputs % _BLOCK == 0 and bool((groups.reshape(-1, _BLOCK) == groups[::_BLOCK, None]).all())
        if not groups_fit or self.scales.format != FORMATS["f16"]:
            return self.scales.format
        return FORMATS["q4_0" if (self._zeros == 8).all() else "q4_1"]

    @cached_property
    def _zeros(self) -> Bytes:
        return self.packing.zeros(_words(self.qzeros))

    @cached_property
    def _packed(self) -> NDArray[np.int32]:
        """`qweight`, in memory until `release`, since the threads of `take` all read from it."""
        return _words(self.qweight)

    def take(self, outputs: Index) -> Bytes:
        """Returns the packed bytes of the given rows, (rows, bytes per row).

        Raises:
            CheckpointError: a value is too large for float16.
        """
        _ = self._packed  # read once, before the threads start
        unpack = self._plain if self.format.values == 1 else self._blocks
        return unpack_rows(unpack, outputs, self.shape[1], self.row_memory)

    def _blocks(self, outputs: Index) -> Bytes:
        """Returns rows of q4_0 or q4_1 blocks: scale, minimum (q4_1), 16 bytes with integers k and k + 16."""
        numbers = self.packing.numbers(self._packed, outputs).reshape(len(outputs), -1, 2, _BLOCK // 2)
        scales = _row_scales(self.scales, outputs)
        fields = [scales]
        if self.format.name == "q4_1":
            fields.append(-scales * self._zeros[:, outputs].T)
        blocks = np.empty((*numbers.shape[:2], self.format.bytes), np.uint8)
        for i, field in enumerate(fields):
            blocks[:, :, 2 * i : 2 * i + 2] = self._pack(field[:, self.groups[::_BLOCK]]).reshape(*blocks.shape[:2], 2)
        low, high = numbers[:, :, 0], numbers[:, :, 1]
        np.bitwise_or(low, np.left_shift(high, 4, out=high), out=blocks[:, :, 2 * len(fields) :])
        return blocks.reshape(len(outputs), -1)

    def _plain(self, outputs: Index) -> Bytes:
        numbers = self.packing.numbers(self._packed, outputs).astype(np.float32)
        zeros = self._zeros[:, outputs].T[:, self.groups]
        return self._pack(_row_scales(self.scales, outputs)[:, self.groups] * (numbers - zeros)).reshape(
            len(outputs), -1
        )

    def _pack(self, values: NDArray[np.float32]) -> Bytes:
        return self.scales.format.pack_scaled(values, self.name)

    @property
    def row_memory(self) -> int:
        """Bytes of a row. Temporary arrays are not included: `VALUES_AT_ONCE` bounds them for each thread."""
        return self.format.row_size(self.shape)

    @property
    def data(self) -> Bytes:
        """The packed bytes of all rows, flat."""
        return self.take(np.arange(self.shape[0])).reshape(-1)

    def release(self) -> None:
        """Lets the system drop the files' bytes from memory; later accesses read the files again."""
        for part in (self.qweight, self.qzeros, self.scales):
            part.release()
        self.__dict__.pop("_packed", None)


def _words(tensor: StoredTensor) -> NDArray[np.int32]:
    return tensor.data.view("<i4").reshape(tensor.shape)


def _row_scales(scales: StoredTensor, outputs: Index) -> NDArray[np.float32]:
    """Unpacks the scales of the given outputs only: (outputs, groups)."""
    packed = scales.data.reshape(*scales.shape, scales.format.bytes)[:, outputs]
    rows: NDArray[np.float32] = scales.format.decode(packed.reshape(-1)).reshape(scales.shape[0], -1).T
    return rows
