"""Supervised fine-tuning: the model learns the answers of conversations, the completions of prompts, or plain text."""

from __future__ import annotations

from typing import Any

from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.data.dataset import Dataset
from puna.training.data.read import DataOptions, Report, read_examples
from puna.training.settings import TrainingSettings
from puna.training.tasks.base import Task


class SupervisedFineTuning(Task):
    """The loss is the negative log-likelihood of the tokens of answers; `prompt_loss_weight` adds those of prompts.

    Attributes:
        notes: what the user should know about the data: truncated rows, rows left out.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._is_chat = False

    def read(self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Returns the examples of the training data; raises DataError."""
        examples, report = self._read(data, settings.split, settings, tokenizer)
        self._is_chat = report.is_chat
        return examples

    def read_held_out(self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Returns the examples of held-out data: of a folder or hub data set, its validation split."""
        return self._read(data, "validation", settings, tokenizer)[0]

    def encode_prompt(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Returns the ids of a prompt for a sample: a message of the user if the training data are conversations."""
        if not self._is_chat:
            ids: list[int] = tokenizer(prompt)["input_ids"]
            return ids
        messages = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def _read(
        self, data: Any, split: str, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Dataset, Report]:
        options = DataOptions(
            format=settings.format,
            columns=settings.columns,
            split=split,
            max_length=settings.max_length,
            truncate=settings.truncate,
            bad_rows=settings.bad_rows,
            prompt_loss_weight=settings.prompt_loss_weight,
        )
        examples, report = read_examples(data, tokenizer, options, self.progress)
        self.notes += report.notes()
        return examples, report
