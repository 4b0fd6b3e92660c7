"""Options of the methods that train few parameters. A method ignores none of them: it refuses those it cannot use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """LoRA and its variants, soft prompts, prefixes and bottleneck adapters."""

    rank: int = option(16, "rank of LoRA", at_least=1)
    alpha: float = option(32.0, "LoRA's change is scaled by alpha / rank", above=0)
    dropout: float = option(0.0, "share of LoRA's inputs that are dropped", at_least=0, below=1)
    targets: tuple[str, ...] | str | None = option(
        None, "the matrices to change: names, suffixes or one regular expression; by default the method's"
    )
    rank_pattern: Mapping[str, int] | None = option(None, "ranks of some matrices, by regular expression", at_least=1)
    alpha_pattern: Mapping[str, float] | None = option(None, "alphas of some matrices, by regular expression")
    modules_to_save: tuple[str, ...] | None = option(None, "modules that train completely, such as lm_head")
    rslora: bool = option(False, "scale by alpha / sqrt(rank) (arXiv:2312.03732)")
    dora: bool = option(False, "also train the norms of the rows (arXiv:2402.09353)")
    quantized: bool = option(False, "keep the frozen matrices in the packed format of the file (QLoRA)")
    virtual_tokens: int = option(16, "length of a soft prompt or a prefix", at_least=1)
    initialization: Literal["text", "vocabulary", "random"] | None = option(
        None, "first values of a soft prompt or a prefix; by default text if init_text is set, else vocabulary"
    )
    init_text: str | None = option(None, "text whose embeddings or keys and values begin the training")
    encoder_size: int = option(0, "P-tuning: hidden size of the encoder of the soft prompt; 0: none", at_least=0)
    bottleneck_size: int = option(64, "width of bottleneck adapters", at_least=1)
