"""Tensor files as headers and byte views: safetensors, GGUF, the zip of `torch.save`. What they mean lies elsewhere."""
