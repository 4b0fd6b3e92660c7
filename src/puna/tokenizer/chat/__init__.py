"""Chat templates: the built-in ones, rendering, and the tokens that end a turn."""
