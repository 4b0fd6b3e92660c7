"""`Task`: what is learned. It reads examples, loads the model with the right head, computes loss and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from puna.model import LlamaForCausalLM, LlamaPreTrainedModel
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Batch, Example
from puna.training.forward.base import Forward
from puna.training.settings import TrainingSettings


class Examples(Protocol):
    """Tokenised documents. Reading one does not change any state, so examples can be read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def digest(self) -> str:
        """Returns a hash of everything that the examples depend on: file contents, tokenizer, options."""
        ...


class Task(ABC):
    """A kind of data and its loss. A new task is a file with a subclass, and a row in the table `TASKS`."""

    @abstractmethod
    def read(self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> Examples:
        """Returns the examples of the training data.

        Args:
            data: paths or names, or rows in memory.

        Raises:
            PunaError: a row cannot be used; the message names the file, the line and the remedy.
        """

    def read_held_out(self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> Examples:
        """Returns the examples of held-out data, read after the training data."""
        return self.read(data, settings, tokenizer)

    def load_model(self, path: str | Path, settings: TrainingSettings, examples: Examples) -> LlamaPreTrainedModel:
        """Returns the model with the head that the task needs; `examples` determine the number of labels."""
        return LlamaForCausalLM.from_pretrained(path, dtype=getattr(torch, settings.dtype))

    def loss(self, forward: Forward, batch: Batch, scale: float) -> Tensor:
        """Returns the summed loss of a batch times `scale`, a scalar; the loop chooses `scale` as 1 / total weight."""
        return forward.losses(batch, scale)

    def evaluate(self, forward: Forward, batches: Iterable[Batch]) -> dict[str, Any]:
        """Returns metrics of held-out batches, with "loss", the weighted mean. Called without gradients."""
        total = weight = 0.0
        for batch in batches:
            total += float(self.loss(forward, batch, 1.0))
            weight += batch.total_weight
        return {"loss": total / weight}
