"""Decoders of the weight formats: packed bytes of whole blocks to float32 values.

Layouts follow ggml (`ggml-common.h`, all fields little-endian). Decoders keep ggml's order of operations, in float32,
so that their values are bit-identical to `gguf.quants.dequantize`. `unpack_NAME` maps (n, bytes per block) to
(n, values per block); `pack_NAME` is its inverse for element types. A structured dtype lists the fields of a block in
file order.
"""

# ruff: noqa: D103 (the docstring above describes every function below)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def block_fields(blocks: Bytes, layout: np.dtype[np.void]) -> NDArray[np.void]:
    """Views blocks as records: (n, bytes) -> (n,), with the fields of `layout`."""
    return np.ascontiguousarray(blocks).view(layout)[:, 0]


def halves(numbers: NDArray[np.float16]) -> Floats:
    """Widens the float16 numbers of blocks to a column: (n,) -> (n, 1)."""
    return numbers.astype(np.float32)[:, None]


def two_nibbles(packed: Bytes) -> Bytes:
    """Unpacks the low and the high nibble of each byte: (n, k) -> (n, 2 k)."""
    return _nibbles(packed, 1).reshape(len(packed), -1)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """Unpacks 4-bit values, (n, k) -> (n, k / run, 2, run): per `run` bytes, the low nibbles come first."""
    runs = packed.reshape(len(packed), -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=2)


def _pairs(packed: Bytes) -> Bytes:
    """Unpacks 2-bit values, (n, k) -> (n, k / 32, 4, 32): axis 2 counts the bit pairs of a byte, lowest first."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    pairs: Bytes = np.bitwise_and(packed.reshape(len(packed), -1, 1, 32) >> shifts, 3, dtype=np.uint8)
    return pairs


def unpack_f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4")


def unpack_f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def unpack_bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def unpack_i32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<i4").astype(np.float32)


def unpack_i64(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<i8").astype(np.float32)


def unpack_i8(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view(np.int8).astype(np.float32)


def unpack_u8(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).astype(np.float32)


def unpack_unknown(blocks: Bytes) -> Floats:
    raise CheckpointError(f"the elements have {blocks.shape[1]} bytes and a type that is never used for weights")


def unpack_f8_e4m3(blocks: Bytes) -> Floats:
    """A sign, four bits of exponent with bias 7, three bits of significand; no infinities, 0x7f and 0xff are NaN."""
    codes = np.ascontiguousarray(blocks).astype(np.int32)
    exponent, significand = codes >> 3 & 15, codes & 7
    magnitude = np.ldexp(np.where(exponent, significand + 8, significand), np.maximum(exponent, 1) - 10)
    magnitude[codes & 127 == 127] = np.nan
    numbers: Floats = np.where(codes < 128, magnitude, -magnitude).astype(np.float32)
    return numbers


def pack_f32(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)


def pack_f16(values: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values).astype("<f2").view(np.uint8)


def pack_bf16(values: Floats) -> Bytes:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (bits >> 16 & 1) + 0x7FFF) >> 16).astype("<u2")
    nan = np.isnan(values)
    if nan.any():  # the addition above may have carried a NaN into infinity; bit 0x40 keeps it a (quiet) NaN
        rounded[nan] = (bits[nan] >> 16).astype("<u2") | 0x40
    return rounded.view(np.uint8)


_Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
_Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
_Q5_0 = np.dtype([("d", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])
_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])


def unpack_q8_0(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q8_0)
    return b["q"].astype(np.float32) * halves(b["d"])


def unpack_q4_0(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q4_0)
    q = _nibbles(b["q"], 16).reshape(-1, 32)
    return halves(b["d"]) * (q.astype(np.float32) - 8)


def unpack_q4_1(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q4_1)
    q = _nibbles(b["q"], 16).reshape(-1, 32)
    return halves(b["d"]) * q.astype(np.float32) + halves(b["m"])


def _five_bits(b: NDArray[np.void]) -> Floats:
    high = np.unpackbits(b["high"], axis=1, bitorder="little")  # (n, 32)
    q = _nibbles(b["q"], 16).reshape(-1, 32) | high << 4
    return q.astype(np.float32)


def unpack_q5_0(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q5_0)
    return halves(b["d"]) * (_five_bits(b) - 16)


def unpack_q5_1(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q5_1)
    return halves(b["d"]) * _five_bits(b) + halves(b["m"])


_IQ4_NL_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The sixteen levels of iq4_nl; `kvalues_iq4nl` in ggml-common.h."""


def unpack_iq4_nl(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q4_0)
    q = _nibbles(b["q"], 16).reshape(-1, 32)
    return halves(b["d"]) * _IQ4_NL_VALUES[q]


_MXFP4 = np.dtype([("exponent", "u1"), ("q", "u1", 16)])
_MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of OCP's four-bit floats (e2m1); `kvalues_mxfp4` in ggml-common.h."""


def unpack_mxfp4(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _MXFP4)
    # Half of OCP's scale, 2^(exponent - 127), since the values are doubled.
    scale: Floats = np.ldexp(np.float32(1), b["exponent"].astype(np.int32) - 128)[:, None]
    values: Floats = scale * _MXFP4_VALUES[_nibbles(b["q"], 16).reshape(-1, 32)]
    return values


# The K formats: 256 values in sub-blocks of 16 or 32. Sub-blocks have small integer scales (and minimums), which are
# multiplied by the block's float16 `d` (and `dmin`).

_Q2_K = np.dtype([("scales", "u1", 16), ("q", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
_Q3_K = np.dtype([("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("q", "u1", 128)])
_Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)])
_Q6_K = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


def unpack_q2_k(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q2_K)
    scale = halves(b["d"]) * (b["scales"] & 15).astype(np.float32)  # (n, 16)
    minimum = halves(b["dmin"]) * (b["scales"] >> 4).astype(np.float32)
    q = _pairs(b["q"]).reshape(-1, 16, 16).astype(np.float32)
    return (scale[:, :, None] * q - minimum[:, :, None]).reshape(-1, 256)


def unpack_q3_k(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q3_K)
    # 16 scales of six bits: bytes 0-7 hold the low four bits of each scale, bytes 8-11 the high two.
    low = _nibbles(b["scales"][:, :8], 8).reshape(-1, 16)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (b["scales"][:, None, 8:] >> shifts & 3).reshape(-1, 16)
    scales = (low | high << 4).astype(np.float32) - 32
    # The third bit of value 32 k + j is bit k of byte j of `high`; where it is *clear*, 4 is subtracted.
    third = b["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n, 8, 32)
    q = _pairs(b["q"]).reshape(-1, 8, 32).astype(np.float32) - (4 - (third << 2)).astype(np.float32)
    return ((halves(b["d"]) * scales)[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def _six_bit_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Unpacks eight scales and eight minimums of six bits from twelve bytes: (n, 12) -> (n, 8) and (n, 8).

    The low six bits of bytes 0-3 are scales 0-3, those of bytes 4-7 are minimums 0-3. Bytes 8-11 hold the low four bits
    of scales 4-7 (low nibbles) and of minimums 4-7 (high nibbles); their high two bits are the top bits of bytes 0-7.
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1)
    minimums = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _apply_scales(b: NDArray[np.void], q: Floats) -> Floats:
    """Applies the scales and minimums of q4_K and q5_K: q (n, 8, 32) -> (n, 256)."""
    scales, minimums = _six_bit_scales(b["scales"])
    scale, minimum = halves(b["d"]) * scales, halves(b["dmin"]) * minimums  # (n, 8)
    return (scale[:, :, None] * q - minimum[:, :, None]).reshape(-1, 256)


def unpack_q4_k(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q4_K)
    return _apply_scales(b, _nibbles(b["q"], 32).reshape(-1, 8, 32).astype(np.float32))


def unpack_q5_k(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q5_K)
    fifth = b["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n, 8, 32)
    q = _nibbles(b["q"], 32).reshape(-1, 8, 32) | fifth << 4
    return _apply_scales(b, q.astype(np.float32))


def unpack_q6_k(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _Q6_K)
    low = _nibbles(b["low"], 64).reshape(-1, 2, 4, 32)
    q = (low | _pairs(b["high"]) << 4).astype(np.float32) - 32
    scale = halves(b["d"]) * b["scales"].astype(np.float32)  # (n, 16)
    return (scale[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


_IQ4_XS = np.dtype([("d", "<f2"), ("high", "<u2"), ("low", "u1", 4), ("q", "u1", 128)])
_TQ1_0 = np.dtype([("q", "u1", 48), ("last", "u1", 4), ("d", "<f2")])
_TQ2_0 = np.dtype([("q", "u1", 64), ("d", "<f2")])


def unpack_iq4_xs(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ4_XS)
    high = b["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scale = halves(b["d"]) * ((two_nibbles(b["low"]) | high << 4).astype(np.float32) - 32)  # (n, 8)
    q = _nibbles(b["q"], 16).reshape(-1, 8, 32)
    return (scale[:, :, None] * _IQ4_NL_VALUES[q]).reshape(-1, 256)


_POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], np.uint8)


def _five_trits(packed: Bytes, run: int, count: int = 5) -> Bytes:
    """Unpacks digits of base 3, (n, k) -> (n, k * count): per `run` bytes, their first digits come first.

    A byte is 256 * 0.abcde (base 3), rounded up: multiplying by 3 moves the next digit in front of the point.
    """
    runs = packed.reshape(len(packed), -1, 1, run) * _POWERS_OF_THREE[:count, None]  # modulo 256 drops earlier digits
    digits: Bytes = (runs.astype(np.uint16) * 3 >> 8).astype(np.uint8)
    return digits.reshape(len(packed), -1)


def unpack_tq1_0(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _TQ1_0)
    digits = [_five_trits(b["q"][:, :32], 32), _five_trits(b["q"][:, 32:], 16), _five_trits(b["last"], 4, 4)]
    return halves(b["d"]) * (np.concatenate(digits, axis=1).astype(np.float32) - 1)


def unpack_tq2_0(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _TQ2_0)
    return halves(b["d"]) * (_pairs(b["q"]).reshape(-1, 256).astype(np.float32) - 1)
