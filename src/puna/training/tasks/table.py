"""`TASKS`: every task by name."""

from __future__ import annotations

from puna.training.tasks.base import Task
from puna.training.tasks.classify import Classify
from puna.training.tasks.pretrain import Pretraining
from puna.training.tasks.sft import SupervisedFineTuning

TASKS: dict[str, type[Task]] = {"sft": SupervisedFineTuning, "classify": Classify, "pretrain": Pretraining}
