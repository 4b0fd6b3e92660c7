"""Tokenizer files: detecting their kind, reading and writing each of them."""
