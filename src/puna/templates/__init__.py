"""Chat templates, rendered in a separate process whose time and memory are limited."""

from puna.templates.limits import GENERATION_END, GENERATION_START
from puna.templates.process import render

__all__ = ["GENERATION_END", "GENERATION_START", "render"]
