"""Observes the forward passes of a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from puna import LLM
from puna.backend import Batch, Outputs


def observe_batches(llm: LLM, monkeypatch: pytest.MonkeyPatch, observe: Callable[[Batch], object]) -> None:
    """Calls a function with the batch of each forward pass."""
    forward = llm._backend.forward

    def observed_forward(batch: Batch) -> Outputs:
        observe(batch)
        return forward(batch)

    monkeypatch.setattr(llm._backend, "forward", observed_forward)
