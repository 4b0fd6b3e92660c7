"""The reasons for which `generate()` uses PyTorch instead of the native runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from puna.errors import BackendError, RequestError
from puna.model import LlamaForCausalLM
from puna.model.generation.loop import TorchForward
from puna.model.generation.native import choice, runtime
from puna.model.generation.native.choice import choose_forward
from puna.model.generation.prompt import Prompt
from tests.helpers.configurations import config_of
from tests.helpers.native_generation import IDS, both_paths, new_model


class WithReversedLogits(LlamaForCausalLM):
    """A model that changes the logits of puna's forward pass."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        out = super().forward(*arguments, **options)
        out.logits = out.logits.flip(-1)
        return out


class WithClampedIds(LlamaForCausalLM):
    """A model that changes the inputs of its forward pass."""

    def prepare_inputs_for_generation(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*arguments, **options)
        return inputs | {"input_ids": inputs["input_ids"].clamp(max=40)}


class WithAnotherMethod(LlamaForCausalLM):
    """A subclass that does not change the forward pass."""

    def name(self) -> str:
        return "named"


class RoundedLinear(nn.Linear):
    """A linear layer that rounds its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).round(decimals=1)


def _wrap(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *arguments, **options: forward(*arguments, **options)  # type: ignore[method-assign]


def _set(target: object, name: str, value: object) -> None:
    setattr(target, name, value)


REASONS: dict[str, tuple[Callable[[LlamaForCausalLM], object], str]] = {
    "hook": (lambda m: m.model.norm.register_forward_hook(lambda *_: None), "model.norm has hooks"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(lambda *_: None), "LlamaForCausalLM has hooks"),
    "forward of a layer": (lambda m: _wrap(m.model.layers[0]), "model.layers.0 has another forward"),
    "forward of the model": (_wrap, "LlamaForCausalLM has another forward"),
    "compiled": (lambda m: m.model.compile(), "model has another _compiled_call_impl"),
    "another layer class": (
        lambda m: _set(m.model.layers[1].mlp, "up_proj", RoundedLinear(48, 80, bias=False)),
        "up_proj is a RoundedLinear",
    ),
    "bias of the head": (lambda m: _set(m, "lm_head", nn.Linear(48, 67)), "lm_head.bias is additional"),
    "fewer layers": (lambda m: _set(m.model, "layers", m.model.layers[:1]), "model.layers.1"),
    "additional module": (lambda m: m.add_module("value", nn.Linear(48, 1)), "value."),
    "parametrization": (
        lambda m: nn.utils.parametrizations.weight_norm(m.lm_head), "lm_head is a ParametrizedLinear",
    ),
    "float64": (lambda m: m.double(), "of type torch.float64"),
    "mixed types": (lambda m: m.model.norm.double(), "model.norm.weight is of type torch.float64"),
    "maximum norm": (lambda m: _set(m.model.embed_tokens, "max_norm", 0.5), "model.embed_tokens has max_norm"),
    "eps": (lambda m: _set(m.model.norm, "eps", 0.5), "model.norm has another eps"),
    "frequencies": (lambda m: m.model.rotary_emb.inv_freq.mul_(0.5), "model.rotary_emb has other settings"),
    "scaling": (lambda m: _set(m.model.rotary_emb, "scaling", 0.5), "model.rotary_emb has other settings"),
    "activation": (lambda m: _set(m.model.layers[0].mlp, "act_fn", nn.ReLU()), "model.layers.0.mlp.act_fn is a ReLU"),
    "hook of an activation": (
        lambda m: m.model.layers[1].mlp.act_fn.register_forward_hook(lambda *_: None), "mlp.act_fn has hooks",
    ),
    "rows of the head": (lambda m: _set(m, "lm_head", nn.Linear(48, 70, bias=False)), "lm_head.weight has shape"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(("change", "reason"), REASONS.values(), ids=REASONS)
def test_modules_that_compute_something_else_use_pytorch(
    change: Callable[[LlamaForCausalLM], object], reason: str
) -> None:
    model = new_model()
    model.generate(IDS, max_new_tokens=2)
    change(model)
    with torch.no_grad():
        forward, path = choose_forward(model, model.generation_config, Prompt(IDS, None, torch.ones_like(IDS), None), 4)
    assert isinstance(forward, TorchForward)
    assert reason in path


@pytest.mark.parametrize(
    ("cls", "reason"),
    [(WithReversedLogits, "another forward()"), (WithClampedIds, "another prepare_inputs_for_generation()")],
)
def test_a_subclass_with_another_forward_pass_uses_pytorch(cls: type[LlamaForCausalLM], reason: str) -> None:
    model = cls(config_of())
    model.generate(IDS, max_new_tokens=3)
    assert model.generation_path == f"torch: {cls.__name__} has {reason}"


def test_a_subclass_with_other_methods_uses_the_native_runtime() -> None:
    both_paths(WithAnotherMethod(config_of()), IDS)


def test_a_method_that_is_replaced_in_the_class_uses_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forward = new_model(), LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda self, *a, **k: forward(self, *a, **k))
    model.generate(IDS, max_new_tokens=3)
    assert model.generation_path == "torch: LlamaForCausalLM has another forward()"


def test_dropout_in_training_uses_pytorch() -> None:
    model = new_model(attention_dropout=0.2)
    both_paths(model.eval(), IDS)
    model.train().generate(IDS, max_new_tokens=2)
    assert model.generation_path == "torch: model.layers.0.self_attn has dropout in training"
    both_paths(new_model().train(), IDS)


def test_observed_operations_and_autocast_use_pytorch() -> None:
    model = new_model()
    with FlopCounterMode(display=False) as counter:
        model.generate(IDS, max_new_tokens=2)
    assert counter.get_total_flops() > 0
    assert model.generation_path == "torch: _FlopCounterMode observes PyTorch's operations"
    with torch.autocast("cpu", torch.bfloat16):
        model.generate(IDS, max_new_tokens=2)
    assert model.generation_path == "torch: autocast is enabled"
    with torch.device("cpu"), torch.inference_mode():
        both_paths(model, IDS)


CALLS: list[tuple[dict[str, Any], str]] = [
    ({"use_cache": False}, "use_cache is False"),
    ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions is True"),
    ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states is True"),
]


@pytest.mark.parametrize(("settings", "reason"), CALLS)
def test_calls_that_need_the_module_use_pytorch(settings: dict[str, Any], reason: str) -> None:
    model = new_model()
    model.generate(IDS, max_new_tokens=2, **settings)
    assert model.generation_path is not None
    assert model.generation_path.startswith(f"torch: {reason}")


def test_a_given_cache_uses_pytorch() -> None:
    model = new_model()
    with torch.no_grad():
        cache = model(IDS[:, :4]).past_key_values
    model.generate(IDS, past_key_values=cache, max_new_tokens=2)
    assert model.generation_path == "torch: past_key_values is given"


def test_without_memory_or_library_generate_uses_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    monkeypatch.setattr("puna.native.memory.available_memory", lambda: 1000)
    model.generate(IDS, max_new_tokens=2)
    assert "of memory is available" in model.generation_path
    monkeypatch.undo()

    def fail() -> None:
        raise BackendError("the native library cannot be loaded")

    monkeypatch.setattr(choice, "machine", fail)
    model.generate(IDS, max_new_tokens=2)
    assert model.generation_path == "torch: the native library cannot be loaded"


def test_a_cache_that_does_not_fit_in_memory_uses_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_CACHED", 1)
    model = new_model()
    both_paths(model, IDS[:1])
    model.generate(IDS, max_new_tokens=2)
    assert model.generation_path == "torch: the keys and values do not fit in memory"


def test_ids_outside_the_vocabulary_raise_the_same_error_as_in_forward() -> None:
    model = new_model()
    with pytest.raises(RequestError, match="input_ids holds 99; the embedding has rows 0 to 66"):
        model.generate(torch.tensor([[3, 99]]), max_new_tokens=2)
    assert model.generation_path == "native"
