"""Chat templates: the built-in ones, rendering a conversation, and the tokens that end a turn."""
