"""Texts built from the engine's events: `Answer`, its parts and the complete `Completion`, and stop strings."""

from puna.answer.answer import Answer, Candidates, Completion, Delta, PromptProgress
from puna.answer.stops import check_stops
from puna.answer.timing import Timing

__all__ = ["Answer", "Candidates", "Completion", "Delta", "PromptProgress", "Timing", "check_stops"]
