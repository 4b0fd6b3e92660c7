"""Chat templates, rendered in a separate process whose time and memory are limited."""

from puna.templates.process import render

__all__ = ["render"]
