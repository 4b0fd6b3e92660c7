"""The speed and memory of a run, measured by a forward and a backward pass before the first step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from puna.native.memory import resident_memory
from puna.training.batch import Batch, Example, derived_seed
from puna.training.plan import Plan
from puna.training.trainer import Trainer

_TOKENS = 512
"""Tokens of the measured pass at most, or those of one document."""

_FEW_TOKENS = 128
"""Tokens of short documents that say too little: the next long document is measured instead of them."""

_LEAST_TOKENS = 64
"""Tokens of a pass of which only the memory is measured: the ends of documents, where answers are."""


@dataclass(frozen=True)
class Measurement:
    """The speed of this machine.

    Attributes:
        speed: operations per second.
        tokens: tokens of the pass whose speed was measured; 0 if the speed is that of a matrix product.
        base: bytes of the process after the pass, without its activations and gradients; None before a pass.
        step: bytes that a step of the optimizer needs for a moment.
    """

    speed: float
    tokens: int = 0
    base: int | None = None
    step: int = 0


@dataclass(frozen=True)
class Pass:
    """A measured forward and backward pass.

    Attributes:
        batch: its documents.
        seconds: its time; that of the second pass, since libraries compile code in the first. None if it was too
            small to be representative.
        memory: bytes of the process after it.
        kept: bytes that autograd kept for the backward pass, without those of the model and its parameters.
        step: bytes that a step of the optimizer needs for a moment.
    """

    batch: Batch
    seconds: float | None
    memory: int
    kept: int
    step: int = 0


def measure_pass(trainer: Trainer, plan: Plan, with_speed: bool = True) -> Pass:
    """Returns a measured pass of the first documents of a run, which changes no parameter and no random state.

    Args:
        with_speed: measure the time of a second pass. Otherwise one pass has few tokens.
    """
    documents = _measured_documents(plan) if with_speed else _ends(plan.first_documents())
    batch = Batch.of(documents, derived_seed(plan.settings.seed, 0))
    kept = _KeptBytes(trainer)
    seconds = None
    contexts: list[AbstractContextManager[Any]] = [saved_tensors_hooks(kept.add, lambda tensor: tensor)]
    for hooks in contexts + [nullcontext()] * with_speed:
        started = time.perf_counter()
        with hooks:
            trainer.forward_backward(batch, 1 / max(trainer.task.weight(batch), 1.0))
        seconds = time.perf_counter() - started if with_speed else None
        memory = resident_memory()
        trainer.optimizer.zero_gradients()
    return Pass(batch, seconds, memory, kept.total, trainer.optimizer.step_bytes)


def _ends(documents: Iterable[Example]) -> list[Example]:
    """Returns the first documents with `_LEAST_TOKENS` tokens together; of the last of them, its end."""
    ends: list[Example] = []
    left = _LEAST_TOKENS
    for example in documents:
        if left < 2 and ends:  # a single token learns nothing
            break
        weights = example.weights[-left:].copy()
        weights[0] = 0  # nothing precedes it
        ends.append(replace(example, ids=example.ids[-left:], weights=weights))
        left -= len(weights)
    return ends


def _measured_documents(plan: Plan) -> list[Example]:
    """Returns documents of the first step that fill a pass; documents that are too long for the rest are omitted."""
    documents: list[Example] = []
    tokens, limit = 0, min(_TOKENS, plan.settings.micro_batch_tokens)
    for example in plan.first_documents():
        length = len(example.ids)
        if tokens + length <= limit:
            documents.append(example)
            tokens += length
        elif tokens < min(_FEW_TOKENS, length):
            documents, tokens = [example], length
    return documents


class _KeptBytes:
    """Adds up the memory of the tensors that autograd saves, each once."""

    def __init__(self, trainer: Trainer) -> None:
        model = trainer.trainable.model
        own = (*model.parameters(), *model.buffers(), *trainer.trainable.parameters.values())
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in own}
        self.total = 0

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
