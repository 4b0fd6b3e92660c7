"""`model.generate()`: the decoding loop in plain PyTorch, and its settings."""
