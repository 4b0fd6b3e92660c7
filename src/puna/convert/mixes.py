"""llama.cpp's mixes of quantised formats: the format of each matrix, chosen as `llama_tensor_get_type` does.

A mix has a main format, and formats with more bits for the most sensitive matrices: always the head, and in the mixes
named M and L also v_proj and down_proj. If the blocks of a format do not fit the rows, a fallback is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from puna.checkpoint.names import EMBEDDING, HEAD
from puna.config import LlamaConfig
from puna.errors import CheckpointError, RequestError, show
from puna.formats.blocks import FORMATS, BlockFormat


@dataclass(frozen=True)
class Mix:
    """A choice of one format per tensor.

    Attributes:
        name: the name in options, where upper and lower case are equivalent.
        main: the format of most matrices.
        file_type: `general.file_type` of a GGUF file (llama.h, `llama_ftype`).
    """

    name: str
    main: str
    file_type: int


_TABLE = (
    Mix("f32", "f32", 0), Mix("f16", "f16", 1), Mix("bf16", "bf16", 32),
    Mix("q4_0", "q4_0", 2), Mix("q4_1", "q4_1", 3), Mix("q5_0", "q5_0", 8), Mix("q5_1", "q5_1", 9),
    Mix("q8_0", "q8_0", 7), Mix("iq4_nl", "iq4_nl", 25),
    Mix("q2_K", "q2_K", 10), Mix("q2_K_S", "q2_K", 21),
    Mix("q3_K", "q3_K", 12), Mix("q3_K_S", "q3_K", 11), Mix("q3_K_M", "q3_K", 12), Mix("q3_K_L", "q3_K", 13),
    Mix("q4_K", "q4_K", 15), Mix("q4_K_S", "q4_K", 14), Mix("q4_K_M", "q4_K", 15),
    Mix("q5_K", "q5_K", 17), Mix("q5_K_S", "q5_K", 16), Mix("q5_K_M", "q5_K", 17),
    Mix("q6_K", "q6_K", 18),
)  # fmt: skip

MIXES: dict[str, Mix] = {mix.name.lower(): mix for mix in _TABLE}
"""Every mix by its name in lower case."""

_COPIED = {
    "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31,
    "tq1_0": 36, "tq2_0": 37, "mxfp4": 38,
}  # fmt: skip
"""`general.file_type` of the formats that puna copies but does not quantise to."""

_SYNONYMS = {"q3_K": "q3_K_M", "q4_K": "q4_K_M", "q5_K": "q5_K_M"}
"""As in llama.cpp, q3_K, q4_K and q5_K without a suffix mean the mix with suffix M."""

FALLBACK = {"q2_K": "q4_0", "q3_K": "q4_0", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0"}
"""Formats for rows whose length is not a multiple of 256, as in llama.cpp's `tensor_type_fallback`."""

_PLAIN = "f16"
"""The format for rows whose length is not a multiple of 32."""


def find_mix(name: str) -> Mix:
    """Returns the mix called `name`, in upper or lower case.

    Raises:
        CheckpointError: there is no such mix.
    """
    mix = MIXES.get(str(name).lower())
    if mix is None:
        kind = "is only read and copied" if str(name).lower() in _COPIED else "is unknown"
        raise CheckpointError(f"format {show(name)} {kind}; puna quantises to {', '.join(m.name for m in _TABLE[3:])}")
    return mix


def file_type_of(form: BlockFormat) -> int:
    """Returns `general.file_type` of a GGUF file whose matrices have this format."""
    name = form.name.lower()
    return MIXES[name].file_type if name in MIXES else _COPIED[name]


def check_calibration(quantize: str | None) -> None:
    """Raises RequestError unless `quantize` is a mix or a block format: calibration has no effect on other rounding."""
    if quantize is None or FORMATS[find_mix(quantize).main].values == 1:
        raise RequestError(
            "calibrate applies only to quantisation; also set quantize to a mix or block format, such as Q4_K_M"
        )


def choose(
    mix: Mix, name: str, columns: int, config: LlamaConfig, weighted: bool = False
) -> tuple[BlockFormat, BlockFormat]:
    """Returns a matrix's format, and the format that the mix prefers, which differs if the rows need a fallback.

    Args:
        name, columns: Hugging Face's name of the matrix, and the values per row.
        weighted: whether the quantiser knows the importance of each column (`--calibrate`).
    """
    preferred = chosen = _preferred_format(mix, name, config, weighted)
    if columns % FORMATS[chosen].values:
        chosen = FALLBACK.get(chosen, _PLAIN)
    return FORMATS[chosen if columns % FORMATS[chosen].values == 0 else _PLAIN], FORMATS[preferred]


def _preferred_format(mix: Mix, name: str, config: LlamaConfig, weighted: bool) -> str:
    """Returns the format of a matrix, regardless of the length of its rows."""
    main, kind = mix.main, _SYNONYMS.get(mix.name, mix.name)
    if FORMATS[main].values == 1 or main == "q8_0":
        return main
    if name == HEAD or (name == EMBEDDING and config.tie_word_embeddings):
        return "q6_K"
    if not name.startswith("model.layers."):
        return main
    layer, layers = int(name.split(".")[2]), config.num_hidden_layers
    groups = config.num_attention_heads // config.num_key_value_heads
    if name.endswith(".self_attn.v_proj.weight"):
        return _v_proj(kind, main, layer, layers, groups)
    if name.endswith(".mlp.down_proj.weight"):
        return _down_proj(kind, main, layer, layers, weighted)
    if name.endswith(".self_attn.o_proj.weight"):
        return {"q2_K": "q3_K", "q2_K_S": main, "q3_K_M": "q4_K", "q3_K_L": "q5_K"}.get(kind, main)
    return main


def _more_bits(layer: int, layers: int) -> bool:
    """Whether a layer gets more bits: all layers in the first and last eighth, and every third layer in between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _v_proj(kind: str, main: str, layer: int, layers: int, groups: int) -> str:
    """Returns the format of v_proj. If many query heads share a value head, the matrix is small and sensitive."""
    chosen = main
    if kind == "q2_K":
        chosen = "q4_K" if groups >= 4 else "q3_K"
    elif kind == "q2_K_S" and groups >= 4:
        chosen = "q4_K"
    elif kind == "q3_K_M":
        chosen = "q5_K" if layer < 2 else "q4_K"
    elif kind == "q3_K_L" or (kind == "iq4_nl" and groups >= 4) or (kind == "q4_K_S" and layer < 4):
        chosen = "q5_K"
    elif kind in ("q4_K_M", "q5_K_M") and _more_bits(layer, layers):
        chosen = "q6_K"
    return "q5_K" if layers == 80 and groups == 8 and chosen in ("q3_K", "q4_K") else chosen


def _down_proj(kind: str, main: str, layer: int, layers: int, weighted: bool) -> str:
    """Returns the format of down_proj."""
    early = layer < layers // 8
    if kind == "q2_K":
        return "q3_K"
    if kind == "q2_K_S":
        return "q4_K" if early else main
    if kind == "q3_K_M":
        return "q5_K" if layer < layers // 16 else "q4_K"
    if kind == "q3_K_L" or (early and (kind == "q4_K_S" or (kind == "iq4_nl" and not weighted))):
        return "q5_K"
    if kind in ("q4_K_M", "q5_K_M") and _more_bits(layer, layers):
        return "q6_K"
    if early and weighted and kind in ("q4_0", "q5_0"):
        return {"q4_0": "q4_1", "q5_0": "q5_1"}[kind]
    return main
