"""Options of pretraining from random weights."""

from __future__ import annotations

from dataclasses import dataclass

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """A new model."""

    from_config: str | None = option(None, "config.json of a model that starts with random weights")
    tokenizer: str | None = option(None, "path of the tokenizer, if the model has none")
