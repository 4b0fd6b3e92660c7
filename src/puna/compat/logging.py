"""The functions of `transformers.utils.logging` for the messages of puna; only for compatibility.

If the program has imported transformers, the level of its messages is set, too. There are no progress bars.
"""

from __future__ import annotations

import logging
import sys
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARN, WARNING

__all__ = [
    "CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "NOTSET", "WARN", "WARNING", "add_handler", "disable_progress_bar",
    "disable_propagation", "enable_progress_bar", "enable_propagation", "get_logger", "get_verbosity",
    "is_progress_bar_enabled", "remove_handler", "set_verbosity", "set_verbosity_debug", "set_verbosity_error",
    "set_verbosity_info", "set_verbosity_warning",
]  # fmt: skip

_ROOT = "puna"


def get_logger(name: str | None = None) -> logging.Logger:
    """Returns the logger of this name, by default that of puna."""
    return logging.getLogger(name or _ROOT)


def get_verbosity() -> int:
    """Returns the level of puna's messages, such as `logging.WARNING`."""
    return get_logger().getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Sets the level of puna's messages."""
    get_logger().setLevel(verbosity)
    if "transformers" in sys.modules:
        logging.getLogger("transformers").setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Shows all messages."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Shows messages, warnings and errors."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Shows warnings and errors."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Shows errors only."""
    set_verbosity(ERROR)


def add_handler(handler: logging.Handler) -> None:
    """Adds a handler to puna's logger."""
    get_logger().addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """Removes a handler from puna's logger."""
    get_logger().removeHandler(handler)


def enable_propagation() -> None:
    """Passes messages to the handlers of the root logger, which is the default."""
    get_logger().propagate = True


def disable_propagation() -> None:
    """Does not pass messages to the handlers of the root logger."""
    get_logger().propagate = False


def is_progress_bar_enabled() -> bool:
    """Returns False: there are no progress bars."""
    return False


def enable_progress_bar() -> None:
    """Does nothing: there are no progress bars."""


def disable_progress_bar() -> None:
    """Does nothing: there are no progress bars."""
