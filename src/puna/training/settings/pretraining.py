"""Options of pretraining: the new model, its tokenizer, and the tokens of its texts."""

from __future__ import annotations

from dataclasses import dataclass

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """A new model with random weights."""

    from_config: str | None = option(
        None, "file with the configuration of a new model: config.json of any LLaMA model, or the same keys in TOML"
    )
    tokenizer: str | None = option(None, "folder of the tokenizer; by default the model's")
    depth: int | None = option(None, "number of layers of a new model; 4 by default", at_least=1)
    width: int | None = option(None, "hidden size of a new model; 128 by default", at_least=1)
    heads: int | None = option(None, "number of attention heads of a new model; 4 by default", at_least=1)
    kv_heads: int | None = option(None, "number of its key and value heads; by default as many", at_least=1)
    mlp_width: int | None = option(
        None, "inner size of its feed-forward networks; by default about 8/3 of the hidden size", at_least=1
    )
    tie_embeddings: bool | None = option(None, "its output matrix is its embedding; true by default")
    initial_std: float = option(
        0.02, "standard deviation of new weights; that of projections into the residual is divided by sqrt(2 * depth)",
        above=0,
    )  # fmt: skip
    token_folder: str | None = option(
        None, "folder for the tokens of the texts, which are reused while nothing changes; by default OUTPUT/tokens"
    )
