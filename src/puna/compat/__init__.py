"""Parts that exist only for compatibility with transformers and the libraries that use it."""

from puna.compat import logging

__all__ = ["logging"]
