"""Outputs and caches are trees to PyTorch: what walks over tensors (FSDP2's hooks, tree_map) finds theirs."""

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
WHOLE: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}


def outputs() -> list[Any]:
    config = config_of(rope_scaling=DYNAMIC)
    return [
        LlamaModel(config)(IDS, **WHOLE),
        LlamaForCausalLM(config)(IDS, labels=IDS, **WHOLE),
        LlamaForCausalLM(config)(IDS, use_cache=False),
        LlamaForSequenceClassification(config)(IDS, **WHOLE),
        GenerateOutput(IDS, scores=(torch.ones(2, 67),)),
    ]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of an output, found by hand."""
    if isinstance(value, Tensor):
        return [value]
    found = [tensor for item in (value if isinstance(value, tuple) else ()) for tensor in tensors(item)]
    return found + ([value.positions] if isinstance(value, KVCache) and value.positions is not None else [])


@pytest.mark.parametrize("index", range(5))
def test_outputs_are_flattened_and_built_again(index: int) -> None:
    out = outputs()[index]
    leaves, shape = pytree.tree_flatten(out)
    wanted = [tensor for value in out.to_tuple() for tensor in tensors(value)]
    assert [id(leaf) for leaf in leaves if leaf is not None] == [id(tensor) for tensor in wanted]
    again = pytree.tree_unflatten(leaves, shape)
    assert type(again) is type(out)
    assert list(again) == list(out)
    assert pytree.tree_flatten(again)[1] == shape
    if out.get("past_key_values") is not None:
        assert isinstance(again.past_key_values, KVCache)
        assert again.past_key_values.positions is out.past_key_values.positions
    paths = pytree.tree_flatten_with_path(out)[0]
    assert [id(leaf) for _, leaf in paths] == [id(leaf) for leaf in leaves]


def test_tree_map_reaches_the_tensors() -> None:
    out = LlamaForCausalLM(config_of())(IDS)
    half = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(torch.bfloat16), out)
    assert half.logits.dtype == half.past_key_values[1][0].dtype == torch.bfloat16
    assert half.past_key_values.length == 7
    assert half.past_key_values.positions is None
