"""Time and memory of a run before its start, and settings that respect limits of both.

Time is the number of operations divided by their speed in a forward and backward pass of the first documents (see
`probe.py`), plus the time in which the optimizer reads and writes its values. For runs of a few seconds, the speed is
that of a large matrix product: a lower bound of the time, which short documents and small models exceed several times.
Memory is that of the process after a pass, with the gradients, and the activations of the largest forward pass in
proportion to those that autograd kept in this pass, which has few tokens if the speed is not measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError, show_bytes
from puna.native.memory import available_memory, peak_memory, resident_memory
from puna.training.forward.fused.frozen import lowest_trained, read_cache_size
from puna.training.forward.fused.products import product_dtype
from puna.training.forward.fused.support import unsupported
from puna.training.limits import read_limits
from puna.training.methods.base import VALUE_BYTES, Trainable
from puna.training.methods.table import METHODS
from puna.training.plan import Plan
from puna.training.probe import Measurement, Pass
from puna.training.report.durations import show_seconds
from puna.training.settings import TrainingSettings
from puna.training.work import OPTIMIZER_BYTES, OPTIMIZER_SPEED, Work, work_of

SAMPLES = 200
"""Documents whose lengths are read to estimate those of all."""

_PRODUCT_SECONDS = 0.1
"""Time in which the speed of a matrix product is measured."""

_SHORT_RUN = 5.0
"""Seconds; the speed of runs whose lower bound is less is not measured, which would take as long as some steps."""

_SPREAD = 3.0
"""Standard deviations by which the largest step of a run exceeds the mean number of tokens."""


def limited(
    settings: TrainingSettings, trainable: Trainable, plan: Plan, held_out: int, measure: Callable[[bool], Pass]
) -> tuple[TrainingSettings, Estimate, list[str]]:
    """Returns settings that respect `max_memory` and `max_time`, the estimate with them, and the choices in words.

    The returned settings have no limits, so that they choose nothing again when the run is repeated or resumed.

    Args:
        trainable: the loaded model.
        plan: the documents of the run.
        held_out: number of documents of an evaluation.
        measure: measures a forward and backward pass. Its argument is whether the speed is measured as well, which is
            not worth its time before a short run, and needs more memory.

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
        trainable, examples, settings, steps=plan.steps, documents=plan.documents, evaluated=held_out,
        is_fused=is_fused, longest=len(plan.examples.longest().ids),
    )  # fmt: skip
    work = replace(work, frozen_layers=lowest_trained(trainable))
    if (size := read_cache_size(settings.activation_cache)) is not None:
        work = replace(work, cached_documents=min(plan.count, plan.documents), cache_limit=size)
    speed = measure_speed(work.config, product_dtype(getattr(torch, settings.dtype)))
    measurement = Measurement(speed)
    checkpointing = settings.gradient_checkpointing or work.is_served
    is_long = work.seconds(speed, checkpointing) > _SHORT_RUN
    fits = memory is None or estimate(work, settings, measurement).memory <= memory
    result = measure(fits and (is_long or seconds is not None))
    tokens = work.computed(result.batch)
    scores = work.score_bytes(tokens, count := len(result.batch.lengths))
    if not checkpointing and (expected := work.kept_bytes(tokens, documents=count) - scores):
        work = replace(work, kept_factor=work.kept_factor * max(0.0, result.kept - scores) / expected)
    measurement = _measured(work, settings, result, speed)
    settings, notes = fit(work, settings, measurement, memory, seconds)
    if settings.steps is not None and settings.steps < work.steps:
        work = work.shortened(settings.steps)
    final = estimate(work, settings, measurement)
    return settings, final, [*notes, str(final), *_shortage(final.memory)]


def _shortage(needed: int) -> list[str]:
    """Returns a warning if a run needs more memory than this process can use."""
    available = available_memory()
    if available is None or needed <= (usable := resident_memory() + available):
        return []
    return [
        f"warning: {show_bytes(needed)} are more than the {show_bytes(usable)} of memory that this process can use; "
        f"lower max_length or micro_batch_tokens, or set max_memory to {show_bytes(usable)} or less"
    ]


def _measured(work: Work, settings: TrainingSettings, result: Pass, speed: float) -> Measurement:
    """Returns the memory of a pass and its speed; `speed`, that of a matrix product, if it was not measured."""
    batch, checkpointing = result.batch, settings.gradient_checkpointing or work.is_served
    squares = sum((length + work.virtual) ** 2 for length in batch.lengths)
    count = len(batch.lengths)
    supervised = 0 if batch.labels is not None else int(np.count_nonzero(batch.weights))
    own = replace(work, has_scores=work.has_scores and len(set(batch.lengths)) > 1)
    needed = own.pass_bytes(own.computed(batch), supervised, checkpointing, documents=count)
    base = result.memory - round(work.trained * VALUE_BYTES + needed)
    if result.seconds is None:
        return Measurement(speed, base=base, step=result.step)
    own = replace(own, tokens=batch.tokens / count, supervised=supervised / count, attended=squares / count)
    operations = own.training_operations(checkpointing) - (own.frozen_operations() if own.cached_documents else 0)
    return Measurement(operations * count / result.seconds, batch.tokens, base, result.step)


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
    optimizer = work.trained * OPTIMIZER_BYTES / OPTIMIZER_SPEED * work.steps / max(work.documents, 1)
    each = work.training_operations(checkpointing) / speed + optimizer
    tokens, documents, mean = work.longest, 1.0, max(work.tokens, 1.0)
    if settings.packing:
        spread = math.sqrt(max(0.0, work.attended - (work.tokens + work.virtual) ** 2) * settings.batch_size)
        whole = round(settings.batch_size * mean + _SPREAD * spread) or 1
        tokens = min(max(settings.micro_batch_tokens, work.longest), whole)
        documents = min(tokens / mean, settings.batch_size)
    own = next(value for value in (base, measurement.base, resident_memory()) if value is not None)
    computed, supervised = tokens + work.virtual * documents, tokens * min(1.0, work.supervised / mean)
    activations = work.pass_bytes(computed, supervised, checkpointing, measurement.step, documents)
    needed = own + work.cache_bytes + work.trained * VALUE_BYTES + activations
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
        f"forward pass and recomputed activations. {_remedy(settings)}"
    )


def _remedy(settings: TrainingSettings) -> str:
    """Returns what lowers the memory of a run, of the settings that its method uses."""
    method = METHODS[settings.method]
    names = [name for name in ("rank", "virtual_tokens", "bottleneck_size") if name in method.options]
    text = f"Lower {' or '.join(f'{name} ({getattr(settings, name)})' for name in ('max_length', *names))}"
    if settings.task == "pretrain" or settings.quantized or method.keep_quantized:
        return text
    return f"{text}, or use a quantised model with the method qlora"


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
