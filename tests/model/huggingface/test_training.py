"""Gradient checkpointing with every signature, and gradients of embedded tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from puna.errors import RequestError
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from tests.helpers.configurations import config_of

IDS = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))


def new_model(kind: type[Any] = LlamaForCausalLM, **fields: Any) -> Any:
    torch.manual_seed(0)
    return kind(config_of(num_hidden_layers=4, **fields)).train()


def gradients(model: LlamaForCausalLM) -> list[Tensor | None]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


def recomputed(model: LlamaForCausalLM) -> list[int]:
    """Returns how often each layer runs in a step of training."""
    counts = [0] * len(model.model.layers)

    def count(index: int) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            counts[index] += 1

        return hook

    hooks = [
        layer.input_layernorm.register_forward_pre_hook(count(index)) for index, layer in enumerate(model.model.layers)
    ]
    gradients(model)
    for hook in hooks:
        hook.remove()
    return counts


ARGUMENTS: list[dict[str, Any]] = [
    {}, {"gradient_checkpointing_kwargs": None}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    {"gradient_checkpointing_kwargs": {"use_reentrant": False, "preserve_rng_state": False}}, {"offload": True},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_form_gives_the_same_gradients(arguments: dict[str, Any]) -> None:
    model = new_model()
    expected = gradients(model)
    assert recomputed(model) == [1, 1, 1, 1]
    model.gradient_checkpointing_enable(**arguments)
    assert recomputed(model) == [2, 2, 2, 2]
    result = gradients(model)
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True) if a is not None and b is not None)
    model.gradient_checkpointing_disable()
    assert recomputed(model) == [1, 1, 1, 1]


def test_every_n_th_layer_is_recomputed() -> None:
    model = new_model()
    model.activation_checkpointing_enable(every_n_layers=2)
    assert model.is_activation_checkpointing and model.is_gradient_checkpointing
    assert recomputed(model) == [2, 1, 2, 1]
    model.activation_checkpointing_disable()
    assert recomputed(model) == [1, 1, 1, 1]


def test_both_signatures_of_the_private_method_work() -> None:
    model = new_model()
    for module in model.modules():  # as transformers 4.34 calls it
        model._set_gradient_checkpointing(module, value=True)
    assert model.model.gradient_checkpointing
    for module in model.modules():
        model._set_gradient_checkpointing(module, False)
    assert not model.gradient_checkpointing
    calls = []

    def function(layer: Any, *inputs: Any) -> Any:
        calls.append(layer)
        return checkpoint(layer, *inputs, use_reentrant=False)

    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)
    gradients(model)
    assert calls == list(model.model.layers)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"gradient_checkpointing_kwargs": {"reentrant": True}}, r"keys \['reentrant'\].*use_reentrant"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": "yes"}}, "use_reentrant is 'yes'"),
        ({"every_n_layers": 0}, "every_n_layers is 0"),
    ],
)
def test_invalid_arguments_are_errors(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        new_model().gradient_checkpointing_enable(**arguments)


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification])
def test_the_configuration_turns_it_on_once(kind: type[Any]) -> None:
    with pytest.warns(FutureWarning, match="gradient_checkpointing_enable"):
        model = new_model(kind, gradient_checkpointing=True)
    assert model.is_gradient_checkpointing
    assert "gradient_checkpointing" not in model.config.to_dict()
    assert kind.supports_gradient_checkpointing
    assert not new_model(kind, gradient_checkpointing=False).is_gradient_checkpointing


def test_re_entrant_checkpointing_leaves_no_hook_behind() -> None:
    model = new_model().requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert model(IDS).logits.requires_grad
    model.gradient_checkpointing_disable()
    assert not model(IDS).logits.requires_grad
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.gradient_checkpointing_disable()
    assert model(IDS).logits.requires_grad, "the user's own hook stays"
