"""The tokens that the values of virtual tokens begin with: those of a text, or random ones. N virtual tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from puna.errors import ConfigError
from puna.model import LlamaPreTrainedModel
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.settings import TrainingSettings


def initialization(settings: TrainingSettings) -> Literal["text", "vocabulary", "random", "zero"]:
    """Returns the choice of initial values: by default the text if there is one, else tokens of the vocabulary.

    Raises:
        ConfigError: the choice and the text contradict each other.
    """
    chosen = settings.initialization or ("vocabulary" if settings.init_text is None else "text")
    if (chosen == "text") != (settings.init_text is not None):
        raise ConfigError(
            f"initialization is {chosen!r}, "
            + (
                "but init_text is missing; set init_text"
                if chosen == "text"
                else "so that init_text has no use; omit it"
            )
        )
    return chosen


def initial_ids(
    model: LlamaPreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, settings: TrainingSettings
) -> Tensor:
    """Returns N token ids: the start of the text, repeated if it is short, or random ones without a text.

    Raises:
        ConfigError: the text has no tokens, or there is no tokenizer.
    """
    count = settings.virtual_tokens
    if settings.init_text is None:
        generator = torch.Generator().manual_seed(settings.seed)
        return torch.randint(model.config.vocab_size, (count,), generator=generator)
    if tokenizer is None:
        raise ConfigError("init_text needs the tokenizer of the model, which is missing; add it to the model's folder")
    ids = list(tokenizer(settings.init_text)["input_ids"])
    if not ids:
        raise ConfigError("init_text has no tokens; write some words")
    return torch.tensor((ids * -(-count // len(ids)))[:count])
