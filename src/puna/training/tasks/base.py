"""`Task`: what is learned. It reads examples, loads the model with the right head, computes loss and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.errors import ConfigError
from puna.model import LlamaForCausalLM, LlamaPreTrainedModel
from puna.tokenizer import PreTrainedTokenizerBase, load_tokenizer
from puna.training.batch import Batch, Example, derived_seed, order
from puna.training.forward.base import Forward
from puna.training.settings import TrainingSettings

_HOLD_OUT = 0x486F6C64
"""Separates the random numbers of the choice of held-out documents from those of the epochs."""


class Examples(Protocol):
    """Tokenised documents. Reading one does not change any state, so examples can be read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def longest(self) -> Example:
        """Returns the example with the most tokens."""
        ...

    def digest(self) -> str:
        """Returns a hash of everything that the examples depend on: file contents, tokenizer, options."""
        ...


class Task(ABC):
    """A kind of data and its loss. A new task is a file with a subclass, and a row in the table `TASKS`.

    Attributes:
        notes: facts about the data for the user, such as the number of truncated rows.
        unit: the unit of the numbers that `progress` receives: "rows" or "bytes".
        progress: called while data are tokenised with the numbers of those that are done, and of all.
    """

    notes: Sequence[str] = ()
    unit: ClassVar[str] = "rows"
    progress: Callable[[int, int], None] | None = None

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

    def load_model(
        self, settings: TrainingSettings, examples: Examples, keep_quantized: bool = False
    ) -> LlamaPreTrainedModel:
        """Returns the model with the head that the task needs.

        PyTorch's global random state is that of the run's seed during the call.

        Args:
            examples: determine the number of labels.
            keep_quantized: argument of `from_pretrained`.
        """
        return LlamaForCausalLM.from_pretrained(
            settings.model, dtype=getattr(torch, settings.dtype), keep_quantized=keep_quantized
        )

    def hold_out(
        self, examples: Examples, settings: TrainingSettings
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """Returns the indices of the documents that train (None for all) and of those that are held out.

        By default, `settings.eval_share` of the documents are held out at random, at least one.
        """
        if settings.eval_share == 0:
            return None, np.empty(0, np.int64)
        permutation = order(derived_seed(settings.seed, _HOLD_OUT), 0, len(examples))
        size = max(1, round(settings.eval_share * len(examples)))
        return np.sort(permutation[size:]), np.sort(permutation[:size])

    def load_tokenizer(self, settings: TrainingSettings) -> PreTrainedTokenizerBase:
        """Returns the tokenizer of the model; raises ConfigError if there is no model."""
        if not (settings.tokenizer or settings.model):
            raise ConfigError("there is no model; set model to a local path, or to owner/name on the hub")
        return load_tokenizer(settings.tokenizer or settings.model)

    def encode_prompt(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Returns the ids of a prompt for samples."""
        return list(tokenizer.encode(prompt))

    def weight(self, batch: Batch) -> float:
        """Returns the divisor of the summed loss of a batch."""
        return batch.total_weight

    def loss(self, forward: Forward, batch: Batch, scale: float) -> Tensor:
        """Returns the summed loss of a batch times `scale`, a scalar; the loop chooses `scale` as 1 / total weight."""
        return forward.losses(batch, scale)

    def evaluate(self, forward: Forward, batches: Iterable[Batch]) -> dict[str, Any]:
        """Returns metrics of held-out batches, with "loss", the weighted mean. Called without gradients."""
        total = weight = 0.0
        for batch in batches:
            total += float(self.loss(forward, batch, 1.0))
            weight += self.weight(batch)
        return {"loss": total / weight}
