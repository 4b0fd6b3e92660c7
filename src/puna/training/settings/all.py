"""`TrainingSettings`: all options of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from puna.errors import ConfigError
from puna.training.settings.adapters import AdapterSettings
from puna.training.settings.classification import ClassificationSettings
from puna.training.settings.data import DataSettings
from puna.training.settings.evaluation import EvaluationSettings
from puna.training.settings.optimization import OptimizationSettings
from puna.training.settings.option import check_names, checked
from puna.training.settings.pretraining import PretrainingSettings
from puna.training.settings.run import RunSettings

GROUPS: dict[str, type] = {
    "run": RunSettings,
    "documents": DataSettings,
    "optimizer": OptimizationSettings,
    "adapter": AdapterSettings,
    "evaluation": EvaluationSettings,
    "classification": ClassificationSettings,
    "pretraining": PretrainingSettings,
}
"""The classes of options by the name of their section in the TOML file; those of `run` precede all sections."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(
    PretrainingSettings,
    ClassificationSettings,
    EvaluationSettings,
    AdapterSettings,
    OptimizationSettings,
    DataSettings,
    RunSettings,
):
    """All options of a training run, checked.

    Raises:
        ConfigError: an option has another type, is outside its limits, or contradicts another option.
    """

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, checked(type(self), item, getattr(self, item.name)))
        _check_together(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Returns the settings with these values, and the defaults of all others.

        Raises:
            ArgumentError: there is no option of a name.
            ConfigError: a value is not valid.
        """
        check_names(cls, list(values))
        return cls(**values)

    def changed(self, **values: Any) -> TrainingSettings:
        """Returns the settings with other values; raises as `of` does."""
        check_names(type(self), list(values))
        return replace(self, **values)

    def values(self) -> dict[str, Any]:
        """Returns all options by name."""
        return asdict(self)


def _check_together(settings: TrainingSettings) -> None:
    if settings.patience and not settings.eval_steps:
        raise ConfigError(
            f"patience is {settings.patience}, but eval_steps is 0; set eval_steps, so that evaluations occur"
        )
    if settings.resume and settings.overwrite:
        raise ConfigError("resume and overwrite are both set; resume continues the earlier run, overwrite removes it")


def check_held_out(settings: TrainingSettings, is_given: bool) -> None:
    """Checks the options that need held-out data.

    Args:
        is_given: whether there are held-out data, in files or in memory.

    Raises:
        ConfigError: an option needs held-out data, or two options name them.
    """
    if is_given and settings.eval_share:
        raise ConfigError(
            f"eval_data and eval_share ({settings.eval_share:g}) are both set; set one of them, since either names the "
            "held-out data"
        )
    for name in ("eval_steps", "patience", "keep_best"):
        if getattr(settings, name) and not is_given and not settings.eval_share:
            raise ConfigError(
                f"{name} is {getattr(settings, name)}, but there is no held-out data; set eval_data or eval_share"
            )
