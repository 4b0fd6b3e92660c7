"""The decode loop over token ids: `Engine.step()`, its requests and its events; `Runner`, which steps it."""

from puna.engine.engine import Engine
from puna.engine.request import Event, FinishReason, Request, Sampling
from puna.engine.runner import Runner
from puna.engine.stream import Stream

__all__ = ["Engine", "Event", "FinishReason", "Request", "Runner", "Sampling", "Stream"]
