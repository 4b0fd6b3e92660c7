"""Pretraining: the tokens of texts in files, windows of tokens, and models with random weights."""
