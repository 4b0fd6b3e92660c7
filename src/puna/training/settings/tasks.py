"""Options whose defaults depend on the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def task_defaults(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the defaults of a task that differ from those of the settings.

    Args:
        values: the options that the user sets. Data that the user holds out replace a share of the training data; the
            learning rate of a classifier is for LoRA only.
    """
    defaults = dict(TASK_DEFAULTS.get(task, {}))
    if values.get("eval_data") is not None:
        defaults.pop("eval_share", None)
    if task == "classify" and values.get("method", "lora") not in ("lora", "qlora"):
        defaults.pop("learning_rate")
    return defaults
