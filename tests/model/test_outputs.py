"""Outputs and caches are nodes of PyTorch's pytrees: FSDP2's hooks and `tree_map` find their tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from puna.model import KVCache, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from puna.model.outputs import GenerateOutput
from tests.helpers.configurations import DYNAMIC, config_of

IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))
OUTPUTS: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}


def outputs() -> list[Any]:
    """Returns an output of each class."""
    config = config_of(rope_scaling=DYNAMIC)
    return [
        LlamaModel(config)(IDS, **OUTPUTS),
        LlamaForCausalLM(config)(IDS, labels=IDS, **OUTPUTS),
        LlamaForCausalLM(config)(IDS, use_cache=False),
        LlamaForSequenceClassification(config)(IDS, **OUTPUTS),
        GenerateOutput(IDS, scores=(torch.ones(2, 67),)),
    ]


def tensors_in(value: Any) -> list[Tensor]:
    """Returns all tensors of an output."""
    if isinstance(value, Tensor):
        return [value]
    result = [tensor for item in (value if isinstance(value, tuple) else ()) for tensor in tensors_in(item)]
    return result + ([value.positions] if isinstance(value, KVCache) and value.positions is not None else [])


@pytest.mark.parametrize("index", range(5))
def test_outputs_are_flattened_and_rebuilt(index: int) -> None:
    out = outputs()[index]
    leaves, shape = pytree.tree_flatten(out)
    expected = [tensor for value in out.to_tuple() for tensor in tensors_in(value)]
    assert [id(leaf) for leaf in leaves if leaf is not None] == [id(tensor) for tensor in expected]
    rebuilt = pytree.tree_unflatten(leaves, shape)
    assert type(rebuilt) is type(out)
    assert list(rebuilt) == list(out)
    assert pytree.tree_flatten(rebuilt)[1] == shape
    if out.get("past_key_values") is not None:
        assert isinstance(rebuilt.past_key_values, KVCache)
        assert rebuilt.past_key_values.positions is out.past_key_values.positions
    paths = pytree.tree_flatten_with_path(out)[0]
    assert [id(leaf) for _, leaf in paths] == [id(leaf) for leaf in leaves]


def test_tree_map_converts_the_tensors() -> None:
    out = LlamaForCausalLM(config_of())(IDS)
    half = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(torch.bfloat16), out)
    assert half.logits.dtype == half.past_key_values[1][0].dtype == torch.bfloat16
    assert half.past_key_values.length == 7
    assert half.past_key_values.positions is None
