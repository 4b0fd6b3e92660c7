"""Detects failures of a run before they ruin it: values that are not finite, spikes, parameters that do not learn.

`interrupts` handles Ctrl-C.
"""

from puna.training.safety.interrupts import Interrupts, TrainingInterrupted
from puna.training.safety.movement import Movement
from puna.training.safety.spikes import SpikeDetector

__all__ = ["Interrupts", "Movement", "SpikeDetector", "TrainingInterrupted"]
