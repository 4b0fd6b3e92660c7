"""Chat templates: rendering in a limited process, built-in templates, the tokens that end a turn."""

from puna.tokenizer.chat.render import render_chat

__all__ = ["render_chat"]
