"""Lines of text about a run, for displays that do not draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import show_bytes
from puna.training.report.durations import show_seconds
from puna.training.report.snapshot import Snapshot


def step_line(state: Snapshot) -> str:
    """Returns the progress in one line: step, loss, learning rate, gradient norm, speed, memory and time left."""
    parts = [f"step {state.step:,}/{state.steps:,}", *numbers(state)]
    return "  ".join(parts)


def numbers(state: Snapshot) -> list[str]:
    """Returns the numbers of the last steps, each with its name or unit."""
    parts = [f"loss {state.loss:.4f}"] if state.loss is not None else []
    if state.learning_rate is not None:
        parts.append(f"lr {state.learning_rate:.3g}")
    if state.gradient_norm is not None:
        parts.append(f"gradient norm {state.gradient_norm:.3g}")
    if state.tokens_per_second is not None:
        parts.append(f"{state.tokens_per_second:,.0f} tok/s")
    if state.memory is not None:
        parts.append(show_bytes(state.memory))
    if state.left is not None:
        parts.append(f"{show_seconds(state.left)} left")
    return parts


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Returns the metrics that are numbers, such as "loss 0.5123, accuracy 0.9810"."""
    pairs = [
        f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items() if isinstance(value, int | float)
    ]
    return ", ".join(pairs)
