"""Options of the methods that train few parameters. A method ignores none of them: it refuses those it cannot use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from puna.training.settings.option import option

Layers: TypeAlias = int | tuple[int, ...] | None
"""Layers that train: the last n, those with these numbers from 0, or all."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """LoRA and its variants, IA3, soft prompts, prefixes and bottleneck adapters."""

    adapter: str | None = option(None, "folder of an adapter whose values the training starts from")
    layers: int | tuple[int, ...] | None = option(
        None, "layers that train: the last n, or a list of numbers from 0", at_least=0
    )
    modules_to_save: tuple[str, ...] | None = option(None, "modules that train completely, such as lm_head")
    targets: tuple[str, ...] | str | None = option(
        None, "the matrices to change: names, suffixes or one regular expression; by default the method's"
    )
    exclude: tuple[str, ...] | None = option(None, "names of matrices that are not changed")
    rank: int = option(16, "rank of LoRA", at_least=1, at_most=65536)
    alpha: float = option(32.0, "LoRA's change is scaled by alpha / rank", above=0)
    dropout: float = option(0.0, "share of LoRA's inputs that are dropped", at_least=0, below=1)
    rank_pattern: Mapping[str, int] | None = option(
        None, "ranks of some matrices, by regular expression", at_least=1, at_most=65536
    )
    alpha_pattern: Mapping[str, float] | None = option(None, "alphas of some matrices, by regular expression")
    rslora: bool = option(False, "scale by alpha / sqrt(rank) (arXiv:2312.03732)")
    dora: bool = option(False, "also train the norms of the rows (arXiv:2402.09353)")
    trainable_tokens: tuple[int, ...] | None = option(None, "ids of tokens whose embeddings train", at_least=0)
    quantized: bool = option(False, "keep the frozen matrices in the packed format of the file (QLoRA)")
    feedforward: tuple[str, ...] | None = option(
        None, "IA3: the targets whose inputs are multiplied instead of their outputs; by default down_proj"
    )
    virtual_tokens: int = option(16, "length of a soft prompt or a prefix", at_least=1, at_most=65536)
    initialization: Literal["text", "vocabulary", "random", "zero"] | None = option(
        None, "first values of a soft prompt or a prefix; by default text if init_text is set, else vocabulary"
    )
    init_text: str | None = option(None, "text whose embeddings or keys and values begin the training")
    encoder: Literal["mlp", "lstm"] = option("mlp", "P-tuning: the network that computes the soft prompt")
    encoder_size: int = option(
        0, "P-tuning: width of that network; 0: the hidden size of the model", at_least=0, at_most=65536
    )
    bottleneck_size: int = option(64, "width of bottleneck adapters", at_least=1, at_most=65536)
    bottleneck_after: Literal["feedforward", "both"] = option(
        "feedforward", "bottleneck adapters follow the feed-forward network (arXiv:2005.00247), or both sublayers"
    )
    activation: Literal["relu", "silu", "gelu"] = option("relu", "the function inside bottleneck adapters")
