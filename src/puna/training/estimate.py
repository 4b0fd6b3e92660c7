"""Time and memory of a run before its start, and settings that respect limits of both.

Time is the number of operations divided by their speed in a forward and backward pass of the first documents (see
`probe.py`), plus the time in which the optimizer reads and writes its values. For runs of a few seconds, the speed is
that of a large matrix product: a lower bound of the time, which short documents and small models exceed several times.
Memory is that of the process after this pass, or with the loaded model, plus gradients, moments and the activations of
the largest forward pass. The operations are those of PyTorch's `FlopCounterMode` (tests compare them).

Legend: D hidden, I intermediate, K width of all keys, L layers, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError, show_bytes
from puna.native.memory import peak_memory, resident_memory
from puna.training.batch import Example
from puna.training.forward.fused.frozen import lowest_trained, read_cache_size
from puna.training.forward.fused.products import product_dtype
from puna.training.forward.fused.support import unsupported
from puna.training.limits import read_limits
from puna.training.methods.base import Trainable
from puna.training.plan import Plan
from puna.training.probe import Measurement, Pass
from puna.training.report.durations import show_seconds
from puna.training.settings import TrainingSettings

SAMPLES = 200
"""Documents whose lengths are read to estimate those of all."""

_PRODUCT_SECONDS = 0.1
"""Time in which the speed of a matrix product is measured."""

_SHORT_RUN = 5.0
"""Seconds; runs whose lower bound is less are not measured, since a measurement takes as long as some steps."""

_OPTIMIZER_BYTES, _OPTIMIZER_SPEED = 28, 8e9
"""Bytes of a trained parameter that a step of AdamW reads and writes, and bytes per second."""

_SPREAD = 3.0
"""Standard deviations by which the largest step of a run exceeds the mean number of tokens."""

_VARYING_BYTES = 256 << 20
"""Additional memory, at most, of steps with different numbers of tokens; at most that of the activations."""
_VARYING_SHARE = 1 / 8  # standard deviation of these numbers, relative to their mean, that needs all this memory

_GRADIENT_BYTES = 4
_STATE_BYTES = 16
"""Bytes of a trained parameter: value, gradient and two moments of AdamW, each float32."""

_HEAD_BYTES = 64 << 20
"""Memory of the chunk of logits that exists at one time, with its gradient."""

_REFERENCE_FACTOR = 3.0
"""Activations that autograd keeps in the reference forward pass, relative to those of the fused one."""


@dataclass(frozen=True)
class Work:
    """The sizes of a run that its time and memory depend on.

    Attributes:
        config: of the model.
        trained: number of trained parameters.
        trained_matrices: number of those in matrices of the model's layers, in full fine-tuning.
        added: number of those in matrices that a method adds, such as LoRA's.
        trains_head: whether the head trains, or the embeddings with which it is tied.
        steps: optimizer steps.
        documents: of all steps.
        tokens, supervised, attended: means per document: tokens, supervised tokens, and squared tokens.
        longest: tokens of the longest document that was read.
        evaluated: documents of all evaluations together.
        held_out: documents of the last evaluation, which does not depend on the number of steps.
        value_bytes: bytes of an activation.
        is_fused: whether the fused forward pass computes the run.
        frozen_layers: number of the layers below the lowest that trains, through which no gradient flows.
        cached_documents: documents whose activations of these layers are computed once and kept; 0 without a cache.
        cache_limit: maximum bytes of these activations in memory.
        is_served: whether the native runtime computes the forward pass, and the fused one repeats it.
    """

    config: LlamaConfig
    trained: int
    trained_matrices: int
    added: int
    trains_head: bool
    steps: int
    documents: int
    tokens: float
    supervised: float
    attended: float
    longest: int
    evaluated: int = 0
    held_out: int = 0
    value_bytes: int = 2
    is_fused: bool = True
    frozen_layers: int = 0
    cached_documents: int = 0
    cache_limit: int = 0
    is_served: bool = False

    @property
    def trained_share(self) -> float:
        """Share of the layers through which gradients flow."""
        return 1 - self.frozen_layers / self.config.num_hidden_layers

    @property
    def head_bytes(self) -> int:
        """Memory of logits, which a classifier does not have."""
        return _HEAD_BYTES if self.supervised else 0

    @property
    def cache_bytes(self) -> float:
        """Memory of the activations of frozen layers."""
        return min(self.cache_limit, self.cached_documents * self.tokens * self.config.hidden_size * self.value_bytes)

    @property
    def matrices(self) -> int:
        """Number of parameters of the matrices of all layers, without embeddings and head."""
        config = self.config
        keys = config.num_key_value_heads * config.head_dim
        heads = config.num_attention_heads * config.head_dim
        inner = 3 * config.hidden_size * config.intermediate_size
        return config.num_hidden_layers * (config.hidden_size * (2 * heads + 2 * keys) + inner)

    def forward_operations(self) -> float:
        """Returns the operations of the forward pass of a document; a multiplication and an addition are two."""
        config = self.config
        attention = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * self.attended / 2
        return 2 * (self.matrices + self.added) * self.tokens + attention + self._head_operations()

    def frozen_operations(self) -> float:
        """Returns the operations of the layers without gradients in the forward pass of a document."""
        return (self.forward_operations() - self._head_operations()) * (1 - self.trained_share)

    def _head_operations(self) -> float:
        return 2 * self.config.hidden_size * self.config.vocab_size * self.supervised

    def training_operations(self, checkpointing: bool) -> float:
        """Returns the operations of the forward and backward pass of a document.

        The backward pass computes the gradients of inputs, and those of trained matrices, each with as many operations
        as the forward pass. Checkpointing repeats the forward pass of the layers.
        """
        forward, head = self.forward_operations(), self._head_operations()
        weights = 2 * (self.trained_matrices + self.added) * self.tokens + head * self.trains_head
        layers = (forward - head) * self.trained_share
        return forward + head + layers + weights + (layers if checkpointing else 0.0)

    def operations(self, checkpointing: bool = False) -> float:
        """Returns the operations of the run, with its evaluations."""
        training = self.training_operations(checkpointing) * self.documents
        if self.cached_documents:
            training -= self.frozen_operations() * max(0, self.documents - self.cached_documents)
        return training + self.forward_operations() * self.evaluated

    def seconds(self, speed: float, checkpointing: bool = False) -> float:
        """Returns the time of the run at a speed in operations per second."""
        return self.operations(checkpointing) / speed + self.steps * self.trained * _OPTIMIZER_BYTES / _OPTIMIZER_SPEED

    def shortened(self, steps: int) -> Work:
        """Returns the work of a run with fewer steps."""
        share = steps / self.steps
        evaluated = self.held_out + round((self.evaluated - self.held_out) * share)
        return replace(self, steps=steps, documents=round(self.documents * share), evaluated=evaluated)

    def activation_bytes(self, tokens: int, checkpointing: bool = False) -> float:
        """Returns the memory of the activations that a forward pass of `tokens` tokens keeps for the backward pass."""
        config = self.config
        keys = config.num_key_value_heads * config.head_dim
        layer = 4 * config.hidden_size + 2 * keys + 2 * config.intermediate_size
        factor = 1.0 if self.is_fused else _REFERENCE_FACTOR
        layers = config.num_hidden_layers - self.frozen_layers
        kept = layers * config.hidden_size + layer * factor if checkpointing else layers * layer * factor
        working = 4 * config.intermediate_size  # gradients and recomputed values of one layer
        return tokens * self.value_bytes * (kept + working)


def limited(
    settings: TrainingSettings, trainable: Trainable, plan: Plan, held_out: int, measure: Callable[[], Pass]
) -> tuple[TrainingSettings, Estimate, list[str]]:
    """Returns settings that respect `max_memory` and `max_time`, the estimate with them, and the choices in words.

    The returned settings have no limits, so that they choose nothing again when the run is repeated or resumed.

    Args:
        trainable: the loaded model.
        plan: the documents of the run.
        held_out: number of documents of an evaluation.
        measure: measures a forward and backward pass; called unless the run is short, or exceeds the memory.

    Raises:
        ConfigError: a limit is not valid, or the run does not fit in memory.
    """
    memory, seconds = read_limits(settings)
    settings = settings.changed(max_memory=None, max_time=None)
    parts = np.linspace(0, plan.count, 2 * min(plan.count, SAMPLES) + 1).astype(int)
    indices = parts[1::2]  # the middles: the last part of a split text is short, and would mislead
    examples = [plan.examples[int(index if plan.subset is None else plan.subset[index])] for index in indices]
    is_fused = settings.forward != "reference" and unsupported(trainable) is None
    work = work_of(
        trainable.model, trainable.parameters, examples, settings,
        steps=plan.steps, documents=plan.documents, evaluated=held_out, is_fused=is_fused,
    )  # fmt: skip
    work = replace(work, frozen_layers=lowest_trained(trainable))
    if (size := read_cache_size(settings.activation_cache)) is not None:
        work = replace(work, cached_documents=min(plan.count, plan.documents), cache_limit=size)
    speed = measure_speed(work.config, product_dtype(getattr(torch, settings.dtype)))
    measurement = Measurement(speed)
    is_long = work.seconds(speed, settings.gradient_checkpointing or work.is_served) > _SHORT_RUN
    fits = memory is None or estimate(work, settings, measurement).memory <= memory
    if fits and (is_long or seconds is not None):
        measurement = _measured(work, settings, measure())
    settings, notes = fit(work, settings, measurement, memory, seconds)
    if settings.steps is not None and settings.steps < work.steps:
        work = work.shortened(settings.steps)
    result = estimate(work, settings, measurement)
    return settings, result, [*notes, str(result)]


def _measured(work: Work, settings: TrainingSettings, result: Pass) -> Measurement:
    """Returns the speed and memory of a pass."""
    batch, checkpointing = result.batch, settings.gradient_checkpointing or work.is_served
    squares = sum(length**2 for length in batch.lengths)
    count = len(batch.lengths)
    supervised = 0 if batch.labels is not None else int(np.count_nonzero(batch.weights))
    own = replace(work, tokens=batch.tokens / count, supervised=supervised / count, attended=squares / count)
    memory = work.trained * _GRADIENT_BYTES + work.head_bytes
    base = result.memory - memory - round(work.activation_bytes(batch.tokens, checkpointing))
    operations = own.training_operations(checkpointing) - (own.frozen_operations() if own.cached_documents else 0)
    return Measurement(operations * count / result.seconds, batch.tokens, base)


def work_of(
    model: Any, parameters: dict[str, Any], examples: Sequence[Example], settings: TrainingSettings,
    *, steps: int, documents: int, evaluated: int, is_fused: bool,
) -> Work:  # fmt: skip
    """Returns the sizes of a run.

    Args:
        model: the loaded model with its trainable parameters attached.
        parameters: the trainable parameters by name.
        examples: some documents of the data.
        evaluated: documents of one evaluation.
    """
    lengths = np.array([len(example.ids) for example in examples], np.float64)
    supervised = [0 if example.label is not None else int(np.count_nonzero(example.weights)) for example in examples]
    sizes = {name: item.numel() for name, item in parameters.items() if item.ndim == 2}
    matrices = {name for name in sizes if name.endswith("_proj.weight")}
    outer = {name for name in sizes if name.endswith(("embed_tokens.weight", "lm_head.weight", "score.weight"))}
    evaluations = 1 + (steps // settings.eval_steps if settings.eval_steps else 0)
    return Work(
        config=model.config,
        trained=sum(item.numel() for item in parameters.values()),
        trained_matrices=sum(sizes[name] for name in matrices),
        added=sum(size for name, size in sizes.items() if name not in matrices | outer),
        trains_head=any("lm_head" in name or model.config.tie_word_embeddings for name in outer),
        steps=steps,
        documents=documents,
        tokens=float(lengths.mean()),
        supervised=sum(supervised) / len(supervised),
        attended=float((lengths**2).mean()),
        longest=int(lengths.max()),
        evaluated=evaluated * evaluations,
        held_out=evaluated,
        value_bytes=torch.finfo(getattr(torch, settings.dtype)).bits // 8,
        is_fused=is_fused,
        is_served=settings.forward == "served",
    )


@dataclass(frozen=True)
class Estimate:
    """The time and memory of a run.

    Attributes:
        seconds: of all steps and evaluations; a lower bound if no pass was measured.
        memory: maximum bytes of the process.
        tokens_per_second: of the steps.
        measured: tokens of the measured pass; 0 without one.
    """

    seconds: float
    memory: int
    tokens_per_second: float
    measured: int = 0

    def __str__(self) -> str:
        seconds, speed = show_seconds(self.seconds), f"{self.tokens_per_second:,.0f} tokens/s"
        time = f"at least {seconds} (at most {speed}, from the speed of matrix products)"
        if self.measured:
            time = f"about {seconds} ({speed}, measured with a forward and backward pass of {self.measured:,} tokens)"
        return f"estimate: {time} and about {show_bytes(self.memory)} of memory"


def estimate(work: Work, settings: TrainingSettings, measurement: Measurement, base: int | None = None) -> Estimate:
    """Returns the time and memory of a run.

    Args:
        measurement: the speed, and the memory of the process if it was measured.
        base: bytes of the process with the model, without gradients and activations; those in use now if None.
    """
    checkpointing, speed = settings.gradient_checkpointing or work.is_served, measurement.speed
    optimizer = work.trained * _OPTIMIZER_BYTES / _OPTIMIZER_SPEED * work.steps / max(work.documents, 1)
    each = work.training_operations(checkpointing) / speed + optimizer
    tokens, spread = work.longest, 0.0
    if settings.packing:
        spread = math.sqrt(max(0.0, work.attended - work.tokens**2) * settings.batch_size)
        whole = round(settings.batch_size * max(work.tokens, 1.0) + _SPREAD * spread) or 1
        tokens = min(max(settings.micro_batch_tokens, work.longest), whole)
    own = next(value for value in (base, measurement.base, resident_memory()) if value is not None)
    activations = work.activation_bytes(max(tokens, 1), checkpointing)
    varying = min(1.0, spread / (_VARYING_SHARE * settings.batch_size * max(work.tokens, 1.0)))
    activations += varying * min(activations, _VARYING_BYTES)
    needed = own + work.cache_bytes + work.trained * _STATE_BYTES + work.head_bytes + activations
    memory = round(max(needed, peak_memory() if base is None else 0))
    return Estimate(work.seconds(speed, checkpointing), memory, work.tokens / each, measurement.tokens)


def measure_speed(config: LlamaConfig, dtype: torch.dtype, tokens: int = 512) -> float:
    """Returns the operations per second of a matrix product as in an MLP of the model; takes 0.1 s."""
    x = torch.ones(tokens, config.hidden_size, dtype=dtype)
    weight = torch.ones(config.intermediate_size, config.hidden_size, dtype=dtype)
    with torch.no_grad():
        torch.nn.functional.linear(x, weight)
        count, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < _PRODUCT_SECONDS:
            torch.nn.functional.linear(x, weight)
            count += 1
    return 2 * x.numel() * config.intermediate_size * count / elapsed


def fit(
    work: Work, settings: TrainingSettings, speed: Measurement, memory: int | None, seconds: float | None,
    base: int | None = None,
) -> tuple[TrainingSettings, list[str]]:  # fmt: skip
    """Returns settings that respect limits, and what was chosen, in words.

    Memory is lowered by smaller forward passes, then by recomputed activations: neither changes the result. Time is
    lowered by fewer steps.

    Args:
        memory: maximum bytes of the process; None: no limit.
        seconds: maximum time of the run; None: no limit.

    Raises:
        ConfigError: the model does not fit.
    """
    notes = []
    if memory is not None:
        settings, note = _fit_memory(work, settings, speed, memory, base)
        notes.append(note)
    if seconds is not None:
        settings, note = _fit_time(work, settings, speed, seconds)
        notes.append(note)
    return settings, notes


def _fit_memory(
    work: Work, settings: TrainingSettings, speed: Measurement, memory: int, base: int | None
) -> tuple[TrainingSettings, str]:
    limit = f"max_memory {show_bytes(memory)}"
    for checkpointing in (True,) if settings.gradient_checkpointing else (False, True):
        tokens = settings.micro_batch_tokens
        while True:
            changed = settings.changed(gradient_checkpointing=checkpointing, micro_batch_tokens=tokens)
            if (needed := estimate(work, changed, speed, base).memory) <= memory:
                if changed == settings:
                    return settings, f"{limit}: {show_bytes(needed)} are enough; nothing was changed"
                text = f"micro_batch_tokens = {tokens}" + ", gradient_checkpointing = true" * checkpointing
                return changed, f"{limit} chose {text}: {show_bytes(needed)}"
            if tokens <= work.longest:
                break
            tokens = max(work.longest, tokens // 2)
    raise ConfigError(
        f"max_memory is {show_bytes(memory)}, but this run needs at least {show_bytes(needed)}, with one document per "
        f"forward pass and recomputed activations. Lower max_length ({settings.max_length}) or rank, or use a "
        "quantised model with the method qlora"
    )


def _fit_time(
    work: Work, settings: TrainingSettings, measurement: Measurement, seconds: float
) -> tuple[TrainingSettings, str]:
    total = work.seconds(measurement.speed, settings.gradient_checkpointing or work.is_served)
    limit = f"max_time {show_seconds(seconds)}"
    if total <= seconds:
        return settings, f"{limit}: all {work.steps:,} steps need about {show_seconds(total)}; nothing was changed"
    last = work.forward_operations() * work.held_out / measurement.speed
    steps = min(work.steps, max(1, int(work.steps * (seconds - last) / (total - last))))
    return settings.changed(steps=steps), f"{limit} chose steps = {steps:,} of {work.steps:,}"
