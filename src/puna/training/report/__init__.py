"""Files of a run for people: metrics.jsonl, TensorBoard's event files and report.html.

`report_observers` returns the observers of the loop that write them. Everything else reads these files, also while
another process trains.
"""

from puna.training.report.observers import report_observers

__all__ = ["report_observers"]
