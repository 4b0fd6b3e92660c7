"""Requests in, tokens out: the one decode loop that the command, `LLM`, evaluation and the server drive."""

from puna.engine.engine import Engine
from puna.engine.request import Event, FinishReason, Request, Sampling

__all__ = ["Engine", "Event", "FinishReason", "Request", "Sampling"]
