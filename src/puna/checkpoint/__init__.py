"""Interprets checkpoint files: tensor names, configuration, loading, validation, inspection."""

from puna.checkpoint.inspect import Report, inspect_checkpoint
from puna.checkpoint.loading import Checkpoint, open_checkpoint
from puna.checkpoint.locate import DEFAULT_MODEL, locate_model
from puna.checkpoint.weight import Weight

__all__ = [
    "DEFAULT_MODEL", "Checkpoint", "Report", "Weight", "inspect_checkpoint", "locate_model", "open_checkpoint",
]  # fmt: skip
