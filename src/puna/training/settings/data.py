"""Options of the data: formats, columns, truncation, packing, and the weights of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How rows become documents."""

    format: str = option(
        "auto", "format of the rows: chat, sharegpt, prompt, alpaca or text; auto detects it from the columns"
    )
    columns: Mapping[str, str] | None = option(None, 'names of your columns by puna\'s names, such as text = "body"')
    split: str = option("train", "part of a folder or hub data set, by the names of its files")
    truncate: Literal["end", "start", "split", "error"] = option(
        "end", "the part of a document over max_length that is removed; split makes several documents, as of text files"
    )
    packing: bool = option(True, "several documents share a forward pass, without attending to each other")
    shuffle: bool = option(True, "draw a new order in every epoch")
    bad_rows: Literal["error", "skip"] = option("error", "what happens to a row that cannot be used")
    prompt_loss_weight: float = option(0.0, "weight of the loss of prompts; answers have 1", at_least=0)
    neftune_alpha: float = option(
        0.0, "noise added to embeddings (NEFTune, arXiv:2310.05914), such as 5; 0: none", at_least=0, at_most=1000
    )
