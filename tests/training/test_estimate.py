"""The estimate of time and memory: operations and kept activations as PyTorch counts them; limits of both."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import puna.training.estimate
from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.model import LlamaForCausalLM
from puna.training.batch import Batch, Example, Source
from puna.training.estimate import _measured, estimate, fit, limited
from puna.training.forward.choice import forward_for
from puna.training.forward.fused import attention
from puna.training.forward.fused.frozen import lowest_trained
from puna.training.limits import read_limits
from puna.training.methods.table import METHODS
from puna.training.optimizers.adamw import AdamW
from puna.training.probe import Measurement, _measured_documents, measure_pass
from puna.training.report.durations import read_seconds
from puna.training.settings import TrainingSettings
from puna.training.trainer import Trainer
from puna.training.work import Work, kept_scores, work_of
from tests.golden.files import LAYOUTS
from tests.training.tiny import PlainText

LENGTHS = (48, 48, 48)


def prepared(method: str, lengths: tuple[int, ...] = LENGTHS, **options):
    """Returns the settings, a model with its parameters, its forward pass, a batch, and the sizes of the work."""
    settings = TrainingSettings(model=str(LAYOUTS["hf"]), method=method, dtype="float32", batch_size=3, **options)
    model = LlamaForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    trainable = METHODS[method].attach(model, None, settings)
    forward = forward_for(trainable, settings.forward, settings.gradient_checkpointing)
    random = np.random.default_rng(0)
    examples = []
    for length in lengths:
        weights = np.ones(length, np.float32)
        weights[: length // 2] = 0
        examples.append(Example(random.integers(3, 200, length).astype(np.int32), weights, None, Source("x", 1)))
    work = work_of(
        trainable, examples, settings,
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
    expected = work.kept_bytes(batch.tokens, checkpointing)
    if checkpointing:  # the estimate also has the recomputed activations of one layer of two
        assert total < expected < work.kept_bytes(batch.tokens) * 1.5
    else:
        assert total / 2 < expected < total * 2


def work(**values) -> tuple[Work, TrainingSettings]:
    settings, _, _, _, _, own = prepared("lora")
    return Work(**{**vars(own), "steps": 100, "documents": 300, "longest": 64, **values}), settings


def test_time_is_operations_by_speed():
    own, settings = work()
    result = estimate(own, settings, Measurement(1e9), base=0)
    optimizer = own.steps * own.trained * 28 / 8e9
    assert result.seconds == pytest.approx(own.operations() / 1e9 + optimizer)
    assert estimate(own, settings, Measurement(2e9), base=0).seconds == pytest.approx((result.seconds + optimizer) / 2)


def test_a_time_limit_chooses_steps():
    own, settings = work()
    seconds = own.seconds(1e9)
    changed, (note,) = fit(own, settings, Measurement(1e9), None, seconds / 4 + 1e-9)
    assert changed.steps == 25
    assert "chose steps = 25 of 100" in note
    same, (note,) = fit(own, settings, Measurement(1e9), None, seconds * 2)
    assert same == settings
    assert "nothing was changed" in note


def test_a_memory_limit_chooses_smaller_passes_then_recomputed_activations():
    own, settings = work(tokens=512.0, longest=64)
    settings = settings.changed(batch_size=16, micro_batch_tokens=4096)
    full = estimate(own, settings, Measurement(1e9), base=0).memory
    same, _ = fit(own, settings, Measurement(1e9), full, None, base=0)
    assert same == settings
    smaller, (note,) = fit(own, settings, Measurement(1e9), full - 1, None, base=0)
    assert (smaller.micro_batch_tokens, smaller.gradient_checkpointing) == (2048, False)
    assert "micro_batch_tokens = 2048" in note
    least = settings.changed(micro_batch_tokens=64, gradient_checkpointing=True)
    limit = estimate(own, least, Measurement(1e9), base=0).memory
    assert fit(own, settings, Measurement(1e9), limit, None, base=0)[0].gradient_checkpointing
    with pytest.raises(ConfigError, match=r"needs at least .* qlora"):
        fit(own, settings, Measurement(1e9), limit - 1, None, base=0)


def test_a_pass_has_as_many_tokens_as_steps_of_different_documents_need():
    """A single short document among thousands of equal ones, such as the end of a text, needs almost no more memory."""
    own, settings = work(tokens=64.0, attended=64.0**2, longest=64)
    settings = settings.changed(batch_size=16, micro_batch_tokens=2 * 16 * 64)
    single = 62 / 100  # of 2 tokens among 10,000 documents of 64
    deviations = (0.0, single, 16.0, 32.0, 64.0)  # of the length of a document
    needed = [
        estimate(replace(own, attended=64.0**2 + value**2), settings, Measurement(1e9), base=0).memory
        for value in deviations
    ]
    activations = needed[0] - own.trained * 4
    assert activations > 10**6
    assert 0 < needed[1] - needed[0] < activations / 50
    for memory, value in zip(needed, deviations, strict=True):  # 3 deviations of 16 documents: 12 of one
        assert memory - own.trained * 4 == pytest.approx(activations * (1024 + 12 * value) / 1024, rel=0.01)
    limited = settings.changed(micro_batch_tokens=16 * 64)
    assert estimate(replace(own, attended=2 * 64.0**2), limited, Measurement(1e9), base=0).memory == needed[0]


def test_limits_are_sizes_and_durations():
    assert read_limits(TrainingSettings()) == (None, None)
    assert read_limits(TrainingSettings(max_memory="2GB", max_time="1h 30min")) == (2_000_000_000, 5400.0)
    for name, value in (
        ("max_memory", "much"),
        ("max_time", "5"),
        ("max_time", "5 parsecs"),
        *(
            (name, value)
            for name in ("max_memory", "max_time")
            for value in ("0", "0s", "0MB", ".s", "", f"{'9' * 400}d")
        ),
    ):
        with pytest.raises(ConfigError, match=name):
            read_limits(TrainingSettings(**{name: value}))
    assert read_seconds("max_time", "1.5h") == 5400.0


def test_a_time_limit_keeps_time_for_the_last_evaluation():
    own, settings = work(evaluated=60, held_out=60)
    per_step = own.training_operations(False) * 3 + own.trained * 28 / 8e9 * 1e9
    last = own.forward_operations() * 60
    changed, _ = fit(own, settings, Measurement(1e9), None, (last + 10.5 * per_step) / 1e9)
    assert changed.steps == 10


def measured_pass(method: str):
    settings, _, trainable, forward, batch, own = prepared(method)

    class Documents:
        def __init__(self):
            self.settings = settings

        def first_documents(self):
            starts = np.cumsum((0, *batch.lengths))
            for start, length in zip(starts, batch.lengths, strict=False):
                part = slice(start, start + length)
                yield Example(batch.ids[part].astype(np.int32), batch.weights[part], None, Source("x", 1))

    trainer = Trainer(PlainText(), trainable, forward, AdamW(trainable.parameters, settings))
    return trainer, settings, own, batch, measure_pass(trainer, Documents())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_measured_pass_is_the_speed_and_changes_nothing(method):
    state = torch.random.get_rng_state()
    trainer, settings, own, batch, result = measured_pass(method)
    assert np.array_equal(result.batch.ids, batch.ids) and result.batch.lengths == batch.lengths
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(item.grad is None for item in trainer.trainable.parameters.values())
    measurement = _measured(own, settings, result, 1e9)
    assert own.training_operations(False) * len(batch.lengths) / measurement.speed == pytest.approx(result.seconds)
    kept = own.kept_bytes(batch.tokens)
    assert kept / 2 < result.kept < kept * 2
    assert "measured with a forward and backward pass of 144 tokens" in str(estimate(own, settings, measurement))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_estimate_is_the_memory_of_the_pass_with_what_a_larger_pass_and_the_optimizer_add(method):
    _, settings, own, batch, result = measured_pass(method)
    settings = settings.changed(batch_size=len(batch.lengths))
    result = replace(result, memory=10**12)  # more than that of this process
    same = estimate(own, settings, _measured(own, settings, result, 1e9)).memory
    assert same == pytest.approx(10**12, abs=1000)  # a step is the measured pass
    double = replace(own, tokens=2 * own.tokens, supervised=2 * own.supervised, attended=4 * own.attended)
    measurement = _measured(own, settings, result, 1e9)
    more = estimate(double, settings, measurement).memory - same
    assert more == pytest.approx(own.pass_bytes(2 * 144, 2 * 72) - own.pass_bytes(144, 72), rel=0.01)
    step = replace(measurement, step=10**9)
    assert estimate(own, settings, step).memory == pytest.approx(10**12 + 10**9, rel=1e-4)


def test_soft_prompts_precede_each_document():
    settings, _, _, _, batch, own = prepared("prompt", virtual_tokens=16)
    assert own.virtual == 16 and own.computed(batch) == 144 + 3 * 16
    without = replace(own, virtual=0, attended=48.0**2)
    needed = [estimate(item, settings, Measurement(1e9), base=0).memory for item in (without, own)]
    assert needed[1] / needed[0] == pytest.approx((48 + 16) / 48, rel=0.1)
    assert own.operations() > without.operations() * 1.1


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("lora", r"max_length \(1024\) or rank \(16\), or use a quantised model"),
        ("prompt", r"max_length \(1024\) or virtual_tokens \(16\), or"),
        ("full", r"max_length \(1024\), or use"),
    ],
)
def test_what_a_run_that_does_not_fit_can_lower_are_settings_of_its_method(method, remedy):
    settings, _, _, _, _, own = prepared(method)
    with pytest.raises(ConfigError, match=rf"needs at least .*\. Lower {remedy}"):
        fit(own, settings, Measurement(1e9), 1, None, base=0)


def test_a_pass_of_which_only_the_memory_is_measured_is_the_end_of_a_document():
    settings, _, trainable, forward, _, _ = prepared("lora")
    trainer = Trainer(PlainText(), trainable, forward, AdamW(trainable.parameters, settings))
    long = Example(np.arange(3, 103, dtype=np.int32), np.ones(100, np.float32), None, Source("x", 1))
    plan = SimpleNamespace(settings=settings, first_documents=lambda: iter([long]))
    result = measure_pass(trainer, plan, with_speed=False)
    assert result.batch.ids.tolist() == list(range(39, 103)) and result.batch.weights.sum() == 63
    assert result.seconds is None and result.memory > 10**7


@pytest.mark.parametrize(("lengths", "parts"), [((2, 100, 100), [2, 62]), ((63, 20), [63]), ((2, 3), [2, 3])])
def test_short_documents_do_not_make_the_pass_of_the_memory_short(lengths, parts):
    settings, _, trainable, forward, _, _ = prepared("lora")
    trainer = Trainer(PlainText(), trainable, forward, AdamW(trainable.parameters, settings))
    random = np.random.default_rng(0)
    documents = [
        Example(random.integers(3, 200, n).astype(np.int32), np.ones(n, np.float32), None, Source("x", 1))
        for n in lengths
    ]
    plan = SimpleNamespace(settings=settings, first_documents=lambda: iter(documents))
    batch = measure_pass(trainer, plan, with_speed=False).batch
    assert list(batch.lengths) == parts
    ends = [document.ids[-part:] for document, part in zip(documents, parts, strict=False)]
    assert np.array_equal(batch.ids, np.concatenate(ends))


@pytest.mark.parametrize(
    ("method", "lengths", "options"),
    [
        ("lora", LENGTHS, {"forward": "reference"}),
        ("lora", (144,), {"forward": "reference"}),
        ("lora", (100, 44), {"forward": "reference", "layers": 1}),
        ("prompt", (100, 44), {"forward": "reference", "virtual_tokens": 16}),
        ("prefix", (144,), {"virtual_tokens": 1}),
        ("lora", (100, 44), {}),
    ],
)
def test_attention_keeps_what_pytorch_keeps(method, lengths, options):
    """Masks or weights are square; those of prefixes also have the prefix."""
    _, _, _, forward, batch, own = prepared(method, lengths, **options)
    count, kept = own.computed(batch), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim > 2 and tensor.shape[-2] == count and tensor.shape[-1] in (count, count + 1):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward.losses(batch, 1.0)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss.backward()
    assert (total > 0) == ((len(lengths) > 1 or method == "prefix") and forward.name != "fused")
    own = replace(own, frozen_layers=1) if "layers" in options else own
    assert own.score_bytes(count, len(lengths)) == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_attention_with_dropout_keeps_the_weights_of_all_heads(kv_heads):
    state = torch.random.get_rng_state()
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=kv_heads, attention_dropout=0.1)
    for is_masked in (False, True):
        assert kept_scores(config, torch.float32, is_masked) >= 2 * 4 * config.num_attention_heads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_passes_have_blocks_of_scores_where_the_fused_pass_computes_them(monkeypatch):
    monkeypatch.setattr(attention.native, "has_attention", lambda: False)
    assert prepared("lora", (48, 20))[-1].has_scores
    assert not prepared("lora", LENGTHS)[-1].has_scores  # of equal lengths
    assert not prepared("lora", (48, 20), packing=False)[-1].has_scores
    assert not prepared("lora", (48, 20), forward="reference")[-1].has_scores
    monkeypatch.setattr(attention.native, "has_attention", lambda: True)
    for dtype, width, expected in (
        (torch.bfloat16, 64, attention.NativeAttention),
        (torch.bfloat16, 24, attention.GroupedAttention),
        (torch.float32, 64, attention.GroupedAttention),
    ):
        assert attention.attention_class(dtype, width, False) is expected
        assert type(attention.attention_for(dtype, (5, 4), 4, 2, width)) is expected
    own = prepared("prompt", (48, 20), virtual_tokens=16)[-1]
    blocks = replace(own, longest=4000)._attention_bytes(8000)
    assert blocks == own.config.num_attention_heads * 256 * (4000 + 16) * 4 * 4  # four copies in float32


def test_what_a_pass_keeps_grows_with_its_tokens():
    """The gradient of the head, which does not depend on them, is not among it."""
    settings, _, trainable, forward, batch, _ = prepared("full")
    trainer = Trainer(PlainText(), trainable, forward, AdamW(trainable.parameters, settings))
    kept = []
    for count in (1, 2):
        examples = [Documents3(batch)[index] for index in range(count)]
        plan = SimpleNamespace(settings=settings, first_documents=lambda examples=examples: examples)
        kept.append(measure_pass(trainer, plan).kept)
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.05)


@pytest.mark.parametrize(
    ("lengths", "measured"),
    [
        ((18, 512, 512), [512]),
        ((18, 600, 20), [600]),
        ((200, 400, 300, 12), [200, 300, 12]),
        ((900, 20), [900]),
        ((18, 20), [18, 20]),
    ],
)
def test_the_measured_pass_has_many_tokens_whatever_the_order_of_the_documents(lengths, measured):
    documents = [Example(np.zeros(n, np.int32), np.ones(n, np.float32), None, Source("x", 1)) for n in lengths]
    plan = SimpleNamespace(settings=TrainingSettings(), first_documents=lambda: documents)
    assert [len(item.ids) for item in _measured_documents(plan)] == measured


def test_long_runs_and_runs_with_a_time_limit_are_measured():
    trainer, settings, _, batch, result = measured_pass("lora")
    plan = SimpleNamespace(count=3, subset=None, examples=Documents3(batch), steps=1, documents=3)
    calls = []

    def measure(with_speed):
        calls.append(with_speed)
        return result if with_speed else replace(result, seconds=None)

    _, short, notes = limited(settings, trainer.trainable, plan, 0, measure)
    assert calls == [False] and short.measured == 0 and "at least" in notes[-1]
    _, limit, notes = limited(settings.changed(max_time="1h"), trainer.trainable, plan, 0, measure)
    assert calls == [False, True] and limit.measured == batch.tokens and "about" in notes[-1]
    plan.steps, plan.documents = 10**7, 3 * 10**7
    assert limited(settings, trainer.trainable, plan, 0, measure)[1].measured and calls == [False, True, True]


def test_a_run_that_needs_more_memory_than_can_be_used_is_warned_of(monkeypatch):
    trainer, settings, _, batch, result = measured_pass("lora")
    plan = SimpleNamespace(count=3, subset=None, examples=Documents3(batch), steps=1, documents=3)
    monkeypatch.setattr(puna.training.estimate, "available_memory", lambda: 1 << 50)
    assert "estimate" in limited(settings, trainer.trainable, plan, 0, lambda with_speed: result)[2][-1]
    monkeypatch.setattr(puna.training.estimate, "available_memory", lambda: -(1 << 20))
    note = limited(settings, trainer.trainable, plan, 0, lambda with_speed: result)[2][-1]
    assert note.startswith("warning: ") and "set max_memory" in note


class Documents3:
    """The documents of a batch of three."""

    def __init__(self, batch):
        self.batch = batch

    def longest(self):
        return self[0]

    def __getitem__(self, index):
        part = slice(48 * index, 48 * index + 48)
        return Example(self.batch.ids[part].astype(np.int32), self.batch.weights[part], None, Source("x", 1))


def test_frozen_layers_need_no_backward_pass_and_their_cache_no_second_forward_pass():
    settings, model, trainable, forward, batch, work = prepared("lora", layers=1, forward="reference")
    work = replace(work, frozen_layers=lowest_trained(trainable))
    with FlopCounterMode(display=False) as counter:
        forward.losses(batch, 1.0).backward()
    head = 2 * model.config.hidden_size * model.config.vocab_size * work.supervised * 3
    assert work.operations() == pytest.approx(counter.get_total_flops() - head, rel=0.15)
    epochs = replace(work, documents=9)
    cached = replace(epochs, cached_documents=3, cache_limit=1 << 30)
    frozen = (work.forward_operations() - head / 3) / 2  # one of the two layers, for one document
    assert epochs.operations() - cached.operations() == pytest.approx(6 * frozen, rel=0.05)
    states = 4 * model.config.hidden_size * sum(LENGTHS)
    memory = [estimate(item, settings, Measurement(1e9), base=0).memory for item in (epochs, cached)]
    assert memory[1] - memory[0] == pytest.approx(states, abs=1)
