"""`TASKS`: every task by name."""

from __future__ import annotations

from puna.training.tasks.base import Task

TASKS: dict[str, type[Task]] = {}
