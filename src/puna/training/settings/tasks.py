"""Options whose defaults depend on the task, and on other options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from puna.errors import ConfigError, show
from puna.training.settings.all import GROUPS, TrainingSettings

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "classify": {"learning_rate": 5e-4, "batch_size": 16, "eval_share": 0.1},
    "pretrain": {
        "method": "full",
        "dtype": "float32",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 0.05,
        "final_rate": 0.1,
        "weight_decay": 0.1,
        "beta2": 0.99,
        "spike_threshold": 0.0,  # norms of gradients vary by more in the first steps of new models
        "batch_size": 12,
        "max_length": 256,
    },
}
"""Defaults that differ from those of the settings: rates and sizes that were measured for the tasks' usual models."""

PACKED_PASS_TOKENS = 512
"""Default of micro_batch_tokens for matrices that stay packed, which are chosen to save memory. The activations of
1,024 tokens of SmolLM2-135M need 370 MB; smaller passes dequantise the matrices more often."""


USED_BY: dict[str, tuple[str, ...]] = {
    **{item.name: ("classify",) for item in fields(GROUPS["classification"])},
    **{item.name: ("pretrain",) for item in fields(GROUPS["pretraining"]) if item.name != "tokenizer"},
    "format": ("sft",),
    "prompt_loss_weight": ("sft",),
    "columns": ("sft", "classify"),
    "truncate": ("sft", "classify"),
}
"""The tasks that use an option; all tasks use the others."""


def check_task_options(settings: TrainingSettings) -> None:
    """Raises ConfigError for an option that is set, but that the task of the settings would ignore."""
    if settings.task not in ("sft", *TASK_DEFAULTS):
        return
    for item in fields(settings):
        tasks, value = USED_BY.get(item.name, ()), getattr(settings, item.name)
        if tasks and settings.task not in tasks and value != item.default:
            raise ConfigError(
                f"{item.name} is {show(value)}, but the task {settings.task} does not use it, only "
                f"{' and '.join(tasks)}; leave it out, or set task"
            )


def task_defaults(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the defaults of a task that differ from those of the settings.

    Args:
        values: the options that the user sets. Data that the user holds out replace a share of the training data; the
            learning rate of a classifier is for LoRA only; matrices that stay packed have smaller forward passes.
    """
    defaults = dict(TASK_DEFAULTS.get(task, {}))
    if values.get("eval_data") is not None:
        defaults.pop("eval_share", None)
    if task == "classify" and values.get("method", "lora") not in ("lora", "qlora"):
        defaults.pop("learning_rate")
    if values.get("method") == "qlora" or values.get("quantized"):
        defaults["micro_batch_tokens"] = PACKED_PASS_TOKENS
    return defaults
