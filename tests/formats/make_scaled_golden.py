"""Writes scaled_golden.npz: small matrices quantised and dequantised by compressed-tensors and bitsandbytes.

    PYTHONPATH=FOLDER python make_scaled_golden.py OLD_FOLDER

FOLDER contains compressed-tensors 0.20.0 and bitsandbytes 0.50.2 (`pip install --no-deps --target`), and loguru,
pydantic and psutil. OLD_FOLDER contains compressed-tensors 0.9.4, the last release that is known to have act order.
Run it in an environment with torch; the tests need neither library. bfloat16 is stored as int16.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

OUTPUTS, INPUTS, GROUP = 24, 96, 32

PACKED = {
    "int4_group": (4, "group", True, torch.bfloat16),
    "int4_group_asymmetric": (4, "group", False, torch.float16),
    "int4_channel_asymmetric": (4, "channel", False, torch.bfloat16),
    "int8_tensor": (8, "tensor", True, torch.bfloat16),
    "int8_group_asymmetric": (8, "group", False, torch.bfloat16),
}
"""Matrices packed into 32-bit words: bits, strategy, symmetry and type of the scales."""

NAIVE = {
    "naive_int8_channel": ("int", "channel", True, torch.bfloat16),
    "naive_int8_tensor_asymmetric": ("int", "tensor", False, torch.float32),
    "naive_int8_group": ("int", "group", True, torch.float16),
    "float8_channel": ("float", "channel", True, torch.bfloat16),
    "float8_tensor": ("float", "tensor", True, torch.float32),
    "float8_block": ("float", "block", True, torch.bfloat16),
}
"""Matrices with one byte per weight: type of the weights, strategy, symmetry and type of the scales."""

FOUR_BITS = {
    "nf4": ("nf4", torch.float16, False, torch.uint8, (OUTPUTS, 128)),
    "nf4_nested": ("nf4", torch.bfloat16, True, torch.uint8, (OUTPUTS, 1024)),
    "nf4_odd": ("nf4", torch.float32, False, torch.uint8, (6, 20)),
    "nf4_storage": ("nf4", torch.bfloat16, False, torch.bfloat16, (OUTPUTS, 128)),
    "fp4": ("fp4", torch.float32, False, torch.uint8, (OUTPUTS, 128)),
}
"""bitsandbytes' matrices of four bits: type, dtype of the values, double quantisation, storage type and shape.

Blocks of 64 weights end at the end of a row, except in nf4_odd: with AVX-512, bitsandbytes 0.50.2 uses wrong scales for
rows that are a multiple of 16 but not of 64.
"""

Arrays = dict[str, torch.Tensor]


def scales_of(strategy: str, kind: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Returns random scales in the shape of a strategy."""
    shapes = {"group": (OUTPUTS, INPUTS // GROUP), "channel": (OUTPUTS, 1), "tensor": (1,), "block": (3, 3)}
    return (torch.rand(shapes[strategy], generator=generator) * 0.01 + 0.001).to(kind)


def compressed_tensors(generator: torch.Generator) -> Arrays:
    """Returns the matrices of PACKED and NAIVE, packed and unpacked by compressed-tensors 0.20.0."""
    from compressed_tensors.compressors import NaiveQuantizationCompressor, PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arrays: Arrays = {}
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.03
    cases = [(name, PackedQuantizationCompressor, "int", *case) for name, case in PACKED.items()]
    cases += [(name, NaiveQuantizationCompressor, case[0], 8, *case[1:]) for name, case in NAIVE.items()]
    for name, compressor, kind, bits, strategy, symmetric, dtype in cases:
        arguments = QuantizationArgs(
            num_bits=bits,
            type=kind,
            strategy=strategy,
            symmetric=symmetric,
            group_size=GROUP if strategy == "group" else None,
            block_structure=[8, 32] if strategy == "block" else None,
        )
        scale = scales_of(strategy, dtype, generator)
        state = {"weight": weight.to(dtype), "weight_scale": scale}
        if not symmetric:
            low = -(2 ** (bits - 1))
            state["weight_zero_point"] = torch.randint(low, -low, scale.shape, generator=generator).to(torch.int8)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        packed = compressor.compress(state, scheme)
        arrays |= {f"{name}.{key}": value for key, value in packed.items()}
        arrays[f"{name}.values"] = compressor.decompress(packed, scheme)["weight"]
    return arrays


def act_order(generator: torch.Generator) -> Arrays:
    """Returns a matrix packed by compressed-tensors 0.9.4: inputs are in random groups, zero points have one byte."""
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    numbers = torch.randint(-8, 8, (OUTPUTS, INPUTS), generator=generator).to(torch.int8)
    scale = scales_of("group", torch.float16, generator)
    zero = torch.randint(-8, 8, scale.shape, generator=generator).to(torch.int8)
    order = (torch.arange(INPUTS) // GROUP)[torch.randperm(INPUTS, generator=generator)].to(torch.int32)
    arguments = QuantizationArgs(num_bits=4, strategy="group", symmetric=False, group_size=GROUP, actorder="group")
    return {
        "int4_act_order.weight_packed": pack_to_int32(numbers, 4),
        "int4_act_order.weight_scale": scale,
        "int4_act_order.weight_zero_point": zero,
        "int4_act_order.weight_g_idx": order,
        "int4_act_order.weight_shape": torch.tensor(numbers.shape),
        "int4_act_order.values": dequantize(numbers, scale, zero, arguments, g_idx=order),
    }


def bitsandbytes(generator: torch.Generator) -> Arrays:
    """Returns an int8 matrix and those of FOUR_BITS, packed and unpacked by bitsandbytes."""
    from bitsandbytes import functional

    arrays: Arrays = {}
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.03
    numbers, stats, _ = functional.int8_vectorwise_quant(weight.half())
    arrays |= {"int8.weight": numbers, "int8.SCB": stats}
    arrays["int8.values"] = functional.int8_vectorwise_dequant(numbers, stats)
    for name, (kind, dtype, nested, storage, shape) in FOUR_BITS.items():
        weight = (torch.randn(shape, generator=generator) * 0.03).to(dtype)
        packed, state = functional.quantize_4bit(
            weight, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=storage
        )
        arrays[f"{name}.weight"] = packed
        arrays |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        arrays[f"{name}.values"] = functional.dequantize_4bit(packed, state)
    return arrays


def save(path: Path, arrays: Arrays) -> None:
    plain = {}
    for name, tensor in arrays.items():
        kinds = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
        plain[name] = tensor.detach().contiguous().view(kinds.get(tensor.dtype, tensor.dtype)).numpy()
    np.savez_compressed(path, **plain)


def main() -> None:
    if sys.argv[1] == "--act-order":
        save(Path(sys.argv[2]), act_order(torch.Generator().manual_seed(1)))
        return
    arrays = compressed_tensors(torch.Generator().manual_seed(0)) | bitsandbytes(torch.Generator().manual_seed(2))
    path = Path(__file__).with_name("scaled_golden.npz")
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old.npz"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((sys.argv[1], os.environ.get("PYTHONPATH", "")))}
        subprocess.run([sys.executable, __file__, "--act-order", str(old)], env=environment, check=True)
        save(path, arrays | {name: torch.from_numpy(array) for name, array in np.load(old).items()})
    for name, tensor in np.load(path).items():
        print(name, tensor.dtype, tensor.shape)


if __name__ == "__main__":
    main()
