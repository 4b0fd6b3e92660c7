"""A task and data for tests of the loop, which do not need the formats of data.

The model is the golden checkpoint: 2 layers of width 64. Importing this module registers nothing; see `registered`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from puna.training.batch import Example, Source
from puna.training.tasks.base import Task
from tests.golden.files import LAYOUTS, TEXT

MODEL = str(LAYOUTS["hf"])


class Rows:
    """Examples in memory."""

    def __init__(self, examples: list[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def longest(self) -> Example:
        return max(self._examples, key=lambda example: len(example.ids))

    def digest(self) -> str:
        result = hashlib.sha256()
        for example in self._examples:
            result.update(example.ids.tobytes() + example.weights.tobytes())
        return result.hexdigest()


class PlainText(Task):
    """Every line of a text is a document, of which all tokens but the first are supervised."""

    def read(self, data: Any, settings: Any, tokenizer: Any) -> Rows:
        lines = Path(data).read_text().splitlines()
        rows = [(number, line) for number, line in enumerate(lines, 1) if len(line) > 5]
        return Rows([self._example(data, number, tokenizer.encode(line)[:24]) for number, line in rows])

    @staticmethod
    def _example(file: str, number: int, ids: list[int]) -> Example:
        weights = np.ones(len(ids), np.float32)
        weights[0] = 0
        return Example(np.array(ids, np.int32), weights, None, Source(str(file), number))


OPTIONS: dict[str, Any] = {
    "task": "text", "method": "full", "dtype": "float32", "batch_size": 4, "threads": 1, "learning_rate": 1e-3,
}  # fmt: skip
"""Options of runs with this task."""


def write_data(folder: Path, lines: int = 24) -> str:
    """Writes the first lines of the golden text into a folder; returns the path of the file."""
    path = folder / "text.txt"
    path.write_text("\n".join([line for line in TEXT.read_text().splitlines() if len(line) > 5][:lines]))
    return str(path)


def assert_same_run(result: Any, expected: Any) -> None:
    """Compares losses, metrics, weights and the complete last state of two results, bit for bit."""
    assert result.losses == expected.losses and result.metrics == expected.metrics
    weights = [path.name for path in expected.path.glob("*.safetensors")]
    assert weights, "no weights to compare"
    for name in (*weights, f"checkpoints/step-{len(expected.losses):08}/tensors.safetensors"):
        assert (result.path / name).read_bytes() == (expected.path / name).read_bytes(), name


def register() -> None:
    """Adds the task to the table of the product; for processes that tests start."""
    from puna.training.tasks.table import TASKS

    TASKS["text"] = PlainText
