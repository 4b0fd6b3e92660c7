"""Tokenizer files: detecting the kind, and reading and writing each kind. Nothing here creates a tokenizer."""
