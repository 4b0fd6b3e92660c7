"""The decode loop over token ids: `Engine.step()`, its requests and its events; `Runner`, which steps it."""

from puna.config import Sampling
from puna.engine.adapter import LoadedAdapter
from puna.engine.disk import DEFAULT_DISK_BYTES, DiskCache, open_disk_cache
from puna.engine.engine import Engine
from puna.engine.request import Event, FinishReason, PrefixMiss, Request
from puna.engine.runner import Runner
from puna.engine.statistics import Statistics
from puna.engine.stream import Stream
from puna.native.sampling import TokenLogprobs

__all__ = [
    "DEFAULT_DISK_BYTES",
    "DiskCache",
    "Engine",
    "Event",
    "FinishReason",
    "LoadedAdapter",
    "PrefixMiss",
    "Request",
    "Runner",
    "Sampling",
    "Statistics",
    "Stream",
    "TokenLogprobs",
    "open_disk_cache",
]
