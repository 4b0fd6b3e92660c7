"""Optimizers and learning rates. `base` is the interface of optimizers."""
