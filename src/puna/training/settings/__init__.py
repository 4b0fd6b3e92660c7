"""The settings of a training run: every option with its type, default, description and limits, and their TOML file.

One file per group of options. A new option is one line in the class of its group; the signature and docstring of
`puna.train`, the options of the command, the checks and the TOML file follow from it.
"""

from puna.training.settings.all import GROUPS, TrainingSettings, check_held_out
from puna.training.settings.tasks import TASK_DEFAULTS, check_task_options, task_defaults
from puna.training.settings.toml import parse_toml, read_settings, settings_text

__all__ = [
    "GROUPS", "TASK_DEFAULTS", "TrainingSettings", "check_held_out", "check_task_options", "parse_toml",
    "read_settings", "settings_text", "task_defaults",
]  # fmt: skip
