"""Adapters: small changes to a model that are stored apart from its weights.

`loading` reads a PEFT folder (`peft_folder`, `peft_config`, `slots`, `patterns`) or a GGUF file (`gguf_file`) and
returns an `Adapter`, without PyTorch; `saving` writes one (`peft_writer`, `gguf_writer`). `changes` applies an adapter
to rows of weights in NumPy, `torch_apply` to a model in PyTorch.
"""

from puna.adapters.adapter import Adapter, LowRank, Scaling, TokenRows
from puna.adapters.loading import open_adapter
from puna.adapters.saving import save_adapter

__all__ = ["Adapter", "LowRank", "Scaling", "TokenRows", "open_adapter", "save_adapter"]
