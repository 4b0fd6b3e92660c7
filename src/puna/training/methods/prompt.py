"""Prompt tuning and P-tuning: embeddings that precede the text. N virtual tokens, D hidden, W width of the encoder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from puna.adapters import Adapter
from puna.errors import ConfigError
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.methods.attach import attach_virtual, matrix_rows, trainable_parameter
from puna.training.methods.base import Method, Trainable
from puna.training.methods.initial_text import initial_ids, initialization
from puna.training.methods.targets import train_saved
from puna.training.settings import TrainingSettings


class Prompt(Method):
    """Trains the embeddings of virtual tokens (arXiv:2104.08691)."""

    name = "prompt"
    kind = "prompt"
    options = frozenset({"adapter", "virtual_tokens", "initialization", "init_text", "quantized"})

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds the embeddings, and the classification head of a model that has one."""
        if start is not None:
            assert start.prompt is not None
            values = torch.from_numpy(start.prompt)
        else:
            values = _new_embeddings(trainable, tokenizer, settings)
        prompt = trainable_parameter(trainable, "prompt_embeddings", values)
        attach_virtual(trainable, len(prompt), lambda: prompt)
        train_saved(trainable, settings, start)

    def learning_rate(self, hidden: int) -> float:
        """Returns the lower end of the rates that are usual for prompt tuning, 1e-2 to 3e-2."""
        return 1e-2


class PTuning(Method):
    """Trains a network that computes the soft prompt; the result is the soft prompt (arXiv:2103.10385)."""

    name = "ptuning"
    kind = "prompt"
    options = frozenset({"virtual_tokens", "encoder", "encoder_size", "quantized"})

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds the parameters of the network, and the classification head of a model that has one."""
        hidden = trainable.model.config.hidden_size
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(settings.seed)
            encoder = PromptEncoder(
                settings.virtual_tokens, hidden, settings.encoder_size or hidden, settings.encoder
            ).to(trainable.model.device)
        trainable.parameters |= {f"prompt_encoder.{name}": item for name, item in encoder.named_parameters()}
        attach_virtual(trainable, settings.virtual_tokens, encoder)
        train_saved(trainable, settings, start)

    def learning_rate(self, hidden: int) -> float:
        """Returns a rate for the weights of the network, which are larger than embeddings."""
        return 1e-3


class PromptEncoder(nn.Module):
    """The network of P-tuning, with the layers and names of PEFT's.

    Args:
        count: number of virtual tokens, N.
        hidden: size of an embedding, D.
        width: size of the inner states, W.
        kind: an MLP of three layers, or a bidirectional LSTM of two layers before an MLP of two layers.
    """

    def __init__(self, count: int, hidden: int, width: int, kind: Literal["mlp", "lstm"]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, hidden)
        if kind == "lstm":
            self.lstm_head = nn.LSTM(hidden, width, num_layers=2, bidirectional=True, batch_first=True)
            self.mlp_head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, hidden))
        else:
            self.mlp_head = nn.Sequential(
                nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, hidden)
            )

    def forward(self) -> Tensor:
        """Returns the soft prompt, (N, D)."""
        x = self.embedding.weight  # (N, D)
        if hasattr(self, "lstm_head"):
            x = self.lstm_head(x[None])[0][0]  # (N, 2 W)
        prompt: Tensor = self.mlp_head(x)
        return prompt


def _new_embeddings(
    trainable: Trainable, tokenizer: PreTrainedTokenizerBase | None, settings: TrainingSettings
) -> Tensor:
    embedding, config = trainable.model.get_input_embeddings(), trainable.model.config
    chosen = initialization(settings)
    if chosen == "zero":
        raise ConfigError(
            "initialization is 'zero', from which equal virtual tokens never become different; choose 'vocabulary', "
            "'text' or 'random' for a soft prompt"
        )
    ids = initial_ids(trainable.model, tokenizer, settings).to(trainable.model.device)
    rows = matrix_rows(embedding, ids)  # (N, D)
    if chosen != "random":
        return rows
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randn(len(ids), config.hidden_size, generator=generator) * rows.std().cpu()
