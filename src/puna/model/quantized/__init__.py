"""Matrices that stay packed in a block format, such as Q4_0, and are dequantised when they are used."""

from puna.model.quantized.modules import (
    PackedMatrix,
    QuantEmbedding,
    QuantLinear,
    dequantize_modules,
    float_module,
    packed_linear,
)

__all__ = ["PackedMatrix", "QuantEmbedding", "QuantLinear", "dequantize_modules", "float_module", "packed_linear"]
