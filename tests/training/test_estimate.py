"""The estimate of time and memory: operations and kept activations as PyTorch counts them; limits of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from puna.errors import ConfigError
from puna.model import LlamaForCausalLM
from puna.training.batch import Batch, Example, Source
from puna.training.estimate import Work, estimate, fit, read_limits, work_of
from puna.training.forward.choice import forward_for
from puna.training.methods.table import METHODS
from puna.training.report.durations import read_seconds
from puna.training.settings import TrainingSettings
from tests.golden.files import LAYOUTS

LENGTHS = (48, 48, 48)


def prepared(method: str, **options):
    """Returns the settings, a model with its parameters, its forward pass, a batch, and the sizes of the work."""
    settings = TrainingSettings(model=str(LAYOUTS["hf"]), method=method, dtype="float32", batch_size=3, **options)
    model = LlamaForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    trainable = METHODS[method].attach(model, None, settings)
    forward = forward_for(trainable, settings.forward, settings.gradient_checkpointing)
    random = np.random.default_rng(0)
    examples = []
    for length in LENGTHS:
        weights = np.ones(length, np.float32)
        weights[: length // 2] = 0
        examples.append(Example(random.integers(3, 200, length).astype(np.int32), weights, None, Source("x", 1)))
    work = work_of(
        model, trainable.parameters, examples, settings,
        steps=1, documents=3, evaluated=0, is_fused=forward.name == "fused",
    )  # fmt: skip
    return settings, model, trainable, forward, Batch.of(examples, 0), work


@pytest.mark.parametrize("method", ["lora", "full"])
def test_operations_are_those_that_pytorch_counts(method):
    """The reference forward pass recomputes the logits of its chunks, which the estimate does not count."""
    _, model, _, forward, batch, work = prepared(method, forward="reference")
    with FlopCounterMode(display=False) as counter:
        forward.losses(batch, 1.0).backward()
    head = 2 * model.config.hidden_size * model.config.vocab_size * work.supervised * 3
    counted = counter.get_total_flops() - head
    assert work.operations() == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_activations_are_within_a_factor_of_two(checkpointing):
    """The storage of all tensors that the fused forward pass keeps, without the parameters."""
    _, model, trainable, forward, batch, work = prepared("lora", gradient_checkpointing=checkpointing)
    assert forward.name == "fused"
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    forward.training = True
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward.losses(batch, 1.0)
    own = {item.untyped_storage().data_ptr() for item in [*model.parameters(), *trainable.parameters.values()]}
    total = sum(size for pointer, size in kept.items() if pointer not in own)
    loss.backward()
    expected = work.activation_bytes(batch.tokens, checkpointing)
    if checkpointing:  # the estimate also has the recomputed activations of one layer of two
        assert total < expected < work.activation_bytes(batch.tokens) * 1.5
    else:
        assert total / 2 < expected < total * 2


def work(**values) -> tuple[Work, TrainingSettings]:
    settings, _, _, _, _, own = prepared("lora")
    return Work(**{**vars(own), "steps": 100, "documents": 300, "longest": 64, **values}), settings


def test_time_is_operations_by_speed():
    own, settings = work()
    result = estimate(own, settings, 1e9, base=0)
    assert result.seconds == pytest.approx(own.operations() / 1e9)
    assert estimate(own, settings, 2e9, base=0).seconds == pytest.approx(result.seconds / 2)


def test_a_time_limit_chooses_steps():
    own, settings = work()
    seconds = own.operations() / 1e9
    changed, (note,) = fit(own, settings, 1e9, None, seconds / 4)
    assert changed.steps == 25
    assert "chose steps = 25 of 100" in note
    same, (note,) = fit(own, settings, 1e9, None, seconds * 2)
    assert same == settings
    assert "nothing was changed" in note


def test_a_memory_limit_chooses_smaller_passes_then_recomputed_activations():
    own, settings = work(tokens=512.0, longest=64)
    settings = settings.changed(batch_size=16, micro_batch_tokens=4096)
    full = estimate(own, settings, 1e9, base=0).memory
    same, _ = fit(own, settings, 1e9, full, None, base=0)
    assert same == settings
    smaller, (note,) = fit(own, settings, 1e9, full - 1, None, base=0)
    assert (smaller.micro_batch_tokens, smaller.gradient_checkpointing) == (2048, False)
    assert "micro_batch_tokens = 2048" in note
    least = settings.changed(micro_batch_tokens=64, gradient_checkpointing=True)
    limit = estimate(own, least, 1e9, base=0).memory
    assert fit(own, settings, 1e9, limit, None, base=0)[0].gradient_checkpointing
    with pytest.raises(ConfigError, match=r"needs at least .* qlora"):
        fit(own, settings, 1e9, limit - 1, None, base=0)


def test_limits_are_sizes_and_durations():
    assert read_limits(TrainingSettings()) == (None, None)
    assert read_limits(TrainingSettings(max_memory="2GB", max_time="1h 30min")) == (2_000_000_000, 5400.0)
    for name, value in (("max_memory", "much"), ("max_time", "5"), ("max_time", "5 parsecs")):
        with pytest.raises(ConfigError, match=name):
            read_limits(TrainingSettings(**{name: value}))
    assert read_seconds("max_time", "1.5h") == 5400.0
