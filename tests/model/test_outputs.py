"""Outputs are dictionaries, and outputs and caches are nodes of PyTorch's pytrees, as in transformers."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils import _pytree as pytree

from puna.model import KVCache, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from puna.model.generation.outputs import GenerateDecoderOnlyOutput
from puna.model.outputs import ModelOutput
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
        GenerateDecoderOnlyOutput(IDS, scores=(torch.ones(2, 67),)),
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


# ---- dictionaries


@dataclass
class Sums(ModelOutput):
    """An output as users define them."""

    a: Any = None
    b: Any = None


@dataclass
class TheirSums(transformers.utils.ModelOutput):
    """The same output over transformers' base class."""

    a: Any = None
    b: Any = None


def deleted(out: Any) -> None:
    del out["a"]


def assigned(out: Any, **values: Any) -> Any:
    """Assigns items by name; a name with a leading underscore is an attribute."""
    for name, value in values.items():
        if name.startswith("_"):
            setattr(out, name[1:], value)
        else:
            out[name] = value
    return out


BUILDS: dict[str, Callable[[Any], Any]] = {
    "first field": lambda kind: kind(30),
    "later field": lambda kind: kind(b=1),
    "both fields": lambda kind: kind(a=30, b=10),
    "nothing": lambda kind: kind(),
    "a dict": lambda kind: kind({"a": 30, "b": 10}),
    "pairs": lambda kind: kind([("b", 10), ("a", 30)]),
    "a generator of pairs": lambda kind: kind((name, 1) for name in "ab"),
    "a dict with other names": lambda kind: kind({"a": 30, "c": 10}),
    "a tuple": lambda kind: kind((30, 30)),
    "a string": lambda kind: kind("ab"),
    "an item": lambda kind: assigned(kind(a=30), a=10),
    "a new item": lambda kind: assigned(kind(a=30), c=10),
    "an attribute": lambda kind: assigned(kind(a=30), _a=10),
    "copy.copy": lambda kind: copy.copy(kind(a=30)),
    "copy.deepcopy": lambda kind: copy.deepcopy(assigned(kind(b=30), c=3)),
    "dict.copy": lambda kind: kind(a=1, b=2).copy(),
    "pickle": lambda kind: pickle.loads(pickle.dumps(kind(b=3))),
    "dataclasses.replace": lambda kind: replace(kind(a=1, b=2), b=4),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_outputs_have_the_items_of_transformers_outputs(build: Callable[[Any], Any]) -> None:
    out, expected = build(Sums), build(TheirSums)
    assert isinstance(out, OrderedDict)
    assert type(out) is Sums
    assert dict(out) == dict(expected)
    assert list(out) == list(expected)
    assert (out.to_tuple(), out[:1], len(out)) == (expected.to_tuple(), expected[:1], len(expected))
    assert all(getattr(out, name) == out[name] for name in out)


@pytest.mark.parametrize(
    "change",
    [
        deleted,
        lambda out: out.pop("a"),
        lambda out: out.setdefault("a", 1),
        lambda out: out.update({"a": 1}),
        lambda out: out["c"],
        lambda out: out[3],
        lambda out: out.c,
        lambda out: type(out)([("a", 1), (2, 3)]),
    ],
)
def test_what_transformers_refuses_is_refused(change: Callable[[Any], Any]) -> None:
    errors = []
    for out in (Sums(a=1), TheirSums(a=1)):
        with pytest.raises(Exception) as caught:  # transformers raises Exception for some
            change(out)
        errors.append(caught.type)
    assert issubclass(errors[0], errors[1])


def test_attributes_and_items_never_disagree() -> None:
    out = Sums({"b": 2})
    assert out.a is None
    out.a = 3
    assert (out["a"], out.to_tuple()) == (3, (2, 3))
    out.a = None
    assert (dict(out), out.a) == ({"b": 2}, None)
    out["b"] = None
    assert (dict(out), out.b) == ({}, None)
    out.note = "an attribute that is not a field"
    assert list(out) == []


def test_base_class_holds_any_names_and_is_a_pytree_node() -> None:
    for kind in (ModelOutput, transformers.utils.ModelOutput):
        out = kind({"a": 1.0, "c": 2.0})
        leaves, shape = pytree.tree_flatten(out)
        assert leaves == [1.0, 2.0]
        assert pytree.tree_unflatten(leaves, shape) == out
        assert out[1] == 2.0
        assert pytree.treespec_loads(pytree.treespec_dumps(shape)) == shape


@pytest.mark.parametrize("index", range(5))
def test_every_output_is_rebuilt_from_its_items(index: int) -> None:
    out = outputs()[index]
    assert isinstance(out, dict)
    for rebuilt in (type(out)(dict(out)), type(out)((name, out[name]) for name in out), copy.copy(out)):
        assert list(rebuilt) == list(out)
        assert all(rebuilt[name] is out[name] and getattr(rebuilt, name) is out[name] for name in out)
    empty = type(out)()  # FSDP1 rebuilds outputs item by item
    for name in out:
        empty[name] = out[name]
    assert list(empty) == list(out)
