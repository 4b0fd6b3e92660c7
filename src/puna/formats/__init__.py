"""Headers and bytes of tensor files: safetensors, GGUF, `torch.save`'s zip. `checkpoint/` interprets their contents."""
