"""The decode loop over token ids: `Engine.step()`, its requests and its events."""

from puna.engine.engine import Engine
from puna.engine.request import Event, FinishReason, Request, Sampling

__all__ = ["Engine", "Event", "FinishReason", "Request", "Sampling"]
