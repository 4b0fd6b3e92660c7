"""`Adapter`: small changes to a model that were trained separately from its weights, read from any format.

Legend: R rank of a low-rank change, I inputs and O outputs of a matrix, V vocabulary, D hidden, N virtual tokens, L
layers, K kv heads, E head width. Every key is Hugging Face's name of a tensor, such as
"model.layers.0.self_attn.q_proj.weight", and rows are in Hugging Face's order (half-split RoPE).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig

Floats = NDArray[np.float32]
Kind = Literal["lora", "ia3", "tokens", "prompt", "prefix", "bottleneck"]
Activation = Literal["relu", "silu", "gelu"]


@dataclass(frozen=True)
class LowRank:
    """A change of a matrix W (O, I) to W + scale * b @ a (LoRA, arXiv:2106.09685).

    For the embedding, O is the vocabulary and I the hidden size, as in its stored matrix.

    Attributes:
        a: (R, I).
        b: (O, R).
        scale: alpha / R, or alpha / sqrt(R) with rsLoRA (arXiv:2312.03732).
        magnitude: with DoRA (arXiv:2402.09353), the norms that the rows of the changed matrix are scaled to, (O,); for
            the embedding, the norms of the columns, (D,).
        bias: the change of the output, (O,), which `scale` includes already; None without `lora_bias`.
    """

    a: Floats
    b: Floats
    scale: float
    magnitude: Floats | None = None
    bias: Floats | None = None


@dataclass(frozen=True)
class Scaling:
    """Factors of a layer's inputs (I,) or outputs (O,), the bias included (IA3, arXiv:2205.05638)."""

    factors: Floats
    side: Literal["inputs", "outputs"]


@dataclass(frozen=True)
class Bottleneck:
    """A network added to the outputs x of a layer: x + up f(down x + down_bias) + up_bias (arXiv:1902.00751).

    Attributes:
        down, down_bias: (R, O) and (R,).
        up, up_bias: (O, R) and (O,).
        activation: the name of f; "gelu" is the exact function, with the error function.
    """

    down: Floats
    down_bias: Floats
    up: Floats
    up_bias: Floats
    activation: Activation


@dataclass(frozen=True)
class TokenRows:
    """New rows `values` (n, D) for the tokens `ids` (n,) of the embedding or the head."""

    ids: NDArray[np.intp]
    values: Floats


@dataclass(frozen=True)
class Adapter:
    """The changes of one adapter, checked against the configuration of its base model.

    They apply in this order: `replaced` tensors, `token_rows`, `low_rank` changes, `scalings`, `bottlenecks`. A soft
    prompt or a prefix precedes the text.

    Attributes:
        path: the folder or GGUF file.
        kind: the method: "lora" (with its variants), "ia3", "tokens" (only new rows of tokens), "prompt" (also
            P-tuning), "prefix", or "bottleneck", which only puna's PyTorch models apply.
        config: the configuration of the adapted model; differs from the base model's in the size of the vocabulary and
            the number of labels.
        base: the name or path of the base model that the adapter names, if any.
        head: the head that the adapter was trained with.
        low_rank, scalings, token_rows, bottlenecks: by the name of the matrix.
        replaced: complete tensors that replace those of the base model; their bytes stay in the file.
        prompt: (N, D), embeddings that precede those of the text and take the positions 0 to N - 1.
        prefix: (L, 2, K, N, E), the keys (after RoPE) and values of each layer at the positions 0 to N - 1.
        notes: settings that change nothing, for the user.
    """

    path: Path
    kind: Kind
    config: LlamaConfig
    base: str | None = None
    head: Literal["lm", "classification"] = "lm"
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    token_rows: Mapping[str, TokenRows] = field(default_factory=dict)
    bottlenecks: Mapping[str, Bottleneck] = field(default_factory=dict)
    replaced: Mapping[str, RowSource] = field(default_factory=dict)
    prompt: Floats | None = None
    prefix: Floats | None = None
    notes: tuple[str, ...] = ()

    @property
    def virtual_tokens(self) -> int:
        """Number of positions that precede the text."""
        if self.prefix is not None:
            return int(self.prefix.shape[3])
        return 0 if self.prompt is None else len(self.prompt)
