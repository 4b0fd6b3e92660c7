"""Small models whose `generate()` uses the native runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puna.model import LlamaForCausalLM
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

IDS = torch.randint(3, 67, (3, 9), generator=torch.Generator().manual_seed(2))


def new_model(seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any) -> LlamaForCausalLM:
    model: LlamaForCausalLM = pair(config_of(**{"num_key_value_heads": 2} | fields), seed)[0].to(dtype)
    return model


def both_paths(model: LlamaForCausalLM, *arguments: Any, **settings: Any) -> Tensor:
    """Returns the tokens of the native path, after comparing them with those of the PyTorch path."""
    settings = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": [], "seed": 3} | settings
    native = model.generate(*arguments, **settings)
    assert model.generation_path == "native"
    model.native_generation = False
    expected = model.generate(*arguments, **settings)
    assert model.generation_path == "torch: model.native_generation is False"
    model.native_generation = True
    assert torch.equal(native, expected)
    return native
