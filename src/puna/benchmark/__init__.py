"""Speed of a model on this machine, compared with the machine's limits. Calls `Backend.forward` directly.

The limits: each decoding step reads all packed weights and the caches once, so memory bandwidth limits its speed, or
the processor's peak rate if many sequences share the step; reading a prompt takes a known number of
multiply-accumulates, so the peak rate limits its speed.
"""

from puna.benchmark.limits import Demand, demand, limit, phase_limits, products
from puna.benchmark.timing import Result, Work, plan, read, run, step

__all__ = ["Demand", "Result", "Work", "demand", "limit", "phase_limits", "plan", "products", "read", "run", "step"]
