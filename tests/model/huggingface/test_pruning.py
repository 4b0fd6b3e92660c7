"""`prune_heads`: a pruned model equals one whose removed heads contribute nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from puna.checkpoint import open_checkpoint
from puna.config import LlamaConfig
from puna.config.pruning import cached_heads, pruned_heads
from puna.errors import CheckpointError, ConfigError, RequestError
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, TorchBackend
from tests.helpers.configurations import DYNAMIC, config_of

IDS = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))

CASES: list[tuple[int, dict[int, list[int]], list[int]]] = [
    (4, {0: [0], 1: [2, 3]}, [3, 2]),  # multi-head attention
    (2, {1: [0, 1]}, [2, 1]),  # a complete group
    (2, {0: [0, 2]}, [2, 2]),  # one head of each group
    (2, {0: [1], 1: [0, 1, 2]}, [3, 1]),  # groups of different sizes
    (1, {0: [3], 1: [0, 2]}, [1, 1]),  # multi-query attention
]


def new_model(**fields: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config_of(attention_bias=True, **fields)).eval()


def without_heads(model: Any, heads: dict[int, list[int]]) -> Any:
    """Returns a copy of the model in which the columns of o for these heads are zero."""
    changed = copy.deepcopy(model)
    width = model.config.head_dim
    for layer, numbers in heads.items():
        for head in numbers:
            changed.model.layers[layer].self_attn.o_proj.weight.data[:, head * width : (head + 1) * width] = 0
    return changed


def assert_close(result: Tensor, expected: Tensor) -> None:
    assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(("kv_heads", "heads", "cached"), CASES)
@pytest.mark.parametrize("rope", [None, DYNAMIC])
@torch.no_grad()
def test_removed_heads_contribute_nothing(
    kv_heads: int, heads: dict[int, list[int]], cached: list[int], rope: dict[str, Any] | None
) -> None:
    model = new_model(num_key_value_heads=kv_heads, rope_scaling=rope)
    expected = without_heads(model, heads)
    count = model.num_parameters()
    model.prune_heads(heads)
    assert model.num_parameters() < count
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    out = model(IDS, attention_mask=mask)
    assert_close(out.logits, expected(IDS, attention_mask=mask).logits)
    assert [keys.shape[1] for keys, _ in out.past_key_values] == cached_heads(model.config) == cached
    longer, mask = torch.cat((IDS, IDS[:, :1]), 1), torch.cat((mask, mask[:, -1:]), 1)
    step = model(IDS[:, :1], past_key_values=out.past_key_values, attention_mask=mask).logits
    assert_close(step, expected(longer, attention_mask=mask).logits[:, -1:])
    tokens = model.generate(IDS, max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens, expected.generate(IDS, max_new_tokens=6, do_sample=False))
    assert model.generation_path != "native"


def test_numbers_of_heads_are_those_before_pruning() -> None:
    model = new_model(num_key_value_heads=2)
    expected = without_heads(model, {0: [0, 1, 3]})
    model.prune_heads({0: [1]})
    model.prune_heads({0: [0]})
    model.prune_heads({0: [0, 1, 3]})
    assert model.config.pruned_heads == {0: [0, 1, 3]}
    assert_close(model(IDS).logits, expected(IDS).logits)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (12, 48)


@pytest.mark.parametrize(("kv_heads", "heads", "cached"), CASES)
def test_pruned_models_are_saved_and_loaded(
    kv_heads: int, heads: dict[int, list[int]], cached: list[int], tmp_path: Path
) -> None:
    model = new_model(num_key_value_heads=kv_heads)
    model.prune_heads(heads)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert pruned_heads(loaded.config) == heads
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    loaded.prune_heads({0: [2]})
    expected = without_heads(new_model(num_key_value_heads=kv_heads), {**heads, 0: [*heads.get(0, []), 2]})
    assert_close(loaded(IDS).logits, expected(IDS).logits)


def test_a_configuration_with_pruned_heads_makes_a_pruned_model() -> None:
    for kind in (LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification):
        model: Any = kind(config_of(pruned_heads={"0": [1], 1: []}))
        shapes = [tuple(layer.self_attn.q_proj.weight.shape) for layer in model.get_decoder().layers]
        assert shapes == [(36, 48), (48, 48)]
        assert model(IDS)[0].isfinite().all()


def test_gradients_reach_the_remaining_heads() -> None:
    model = new_model(num_key_value_heads=2).train()
    model.model.layers[0].self_attn.k_proj.weight.requires_grad_(False)
    model.prune_heads({0: [1]})
    model(IDS, labels=IDS).loss.backward()
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.grad.abs().max() > 0
    assert attention.k_proj.weight.grad is None
    assert not attention.k_proj.weight.requires_grad


INVALID: list[tuple[Any, str]] = [
    ({5: [0]}, "layer 5.*from 0 to 1"),
    ({0: [4]}, "head of layer 0 4.*from 0 to 3"),
    ({0: [-1]}, "head of layer 0 -1"),
    ({0: [0, 1, 2, 3]}, "all 4 heads; keep at least one"),
    ({0: 3}, "must be a list of heads"),
    ([1], "must map layers"),
    ({"x": [0]}, "layer 'x'"),
    ({0: [True]}, "True"),
]


@pytest.mark.parametrize(("heads", "text"), INVALID)
def test_invalid_heads_are_errors_and_nothing_is_removed(heads: Any, text: str) -> None:
    model = new_model()
    count = model.num_parameters()
    with pytest.raises(ConfigError, match=text):
        model.prune_heads(heads)
    assert model.num_parameters() == count
    assert pruned_heads(model.config) == {}


def test_the_last_head_is_never_removed_by_several_calls() -> None:
    model = new_model()
    model.prune_heads({0: [0, 1]})
    with pytest.raises(ConfigError, match="all 4 heads"):
        model.prune_heads({0: [2, 3]})
    assert model.config.pruned_heads == {0: [0, 1]}


def test_heads_are_not_removed_from_other_layers_than_linear_ones() -> None:
    class Wrapped(nn.Linear):
        pass

    model = new_model()
    model.model.layers[0].self_attn.q_proj = Wrapped(48, 48)
    with pytest.raises(RequestError, match=r"q_proj is a Wrapped.*merge or remove adapters"):
        model.prune_heads({0: [0]})


def test_other_programs_refuse_pruned_files(tmp_path: Path) -> None:
    model = new_model()
    model.prune_heads({0: [0]})
    model.save_pretrained(tmp_path)
    for read in (open_checkpoint, TorchBackend.from_pretrained):
        with pytest.raises(CheckpointError, match=r"attention heads were removed.*LlamaForCausalLM"):
            read(tmp_path)
    assert LlamaConfig.from_pretrained(tmp_path).num_attention_heads == 4
