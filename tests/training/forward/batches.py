"""Models and batches of the tests of the forward passes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from puna.model import LlamaForCausalLM
from puna.training.batch import Batch, Source
from puna.training.methods.base import Trainable
from puna.training.methods.table import METHODS
from puna.training.settings import TrainingSettings
from tests.helpers.configurations import config_of

VOCABULARY = 120


def new_model(dtype: torch.dtype = torch.float32, **options: Any) -> LlamaForCausalLM:
    """A small model whose weights are exact in bfloat16, so that all types compute the same function."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 72, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_of(vocab_size=VOCABULARY, num_hidden_layers=2, head_dim=16, **(shape | options))
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    return copy.deepcopy(model).to(dtype)


def attached(model: Any, method: str, **settings: Any) -> Trainable:
    """The model with a method whose parameters differ from their initial values, which are often zero."""
    trainable = METHODS[method].attach(model, None, TrainingSettings(method=method, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainable.parameters.items():
            if name not in trainable.masters and not any(parameter is item for item in model.parameters()):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return trainable


def new_batch(*lengths: int, seed: int = 0) -> Batch:
    """Random documents; a third of their tokens is supervised with other weights than 1, and the first never."""
    random = np.random.default_rng(seed)
    total = sum(lengths)
    weights = random.choice([0.0, 0.5, 1.0], total).astype(np.float32)
    weights[np.cumsum((0, *lengths[:-1]))] = 0
    ids = random.integers(0, VOCABULARY, total).astype(np.int64)
    sources = tuple(Source("rows", row + 1) for row in range(len(lengths)))
    return Batch(ids, lengths, weights, None, sources, tuple(range(seed, seed + len(lengths))))


def gradients(forward: Any, batch: Batch, scale: float = 1.0) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch and the gradients of all trainable parameters, float64."""
    trainable = forward.trainable
    for parameter in trainable.parameters.values():
        parameter.grad = None
    loss = forward.losses(batch, scale)
    loss.backward()
    return loss.item(), {name: item.grad.double() for name, item in trainable.parameters.items()}


def error(values: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """The largest relative error of a tensor, in the Euclidean norm."""
    assert values.keys() == exact.keys()
    return max(float((values[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
