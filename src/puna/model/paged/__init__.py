"""The forward pass of a ragged batch over pages of keys and values: the parts of `TorchBackend`."""
