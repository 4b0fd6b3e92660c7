"""The classes around the decoder: losses, heads, pooling, embeddings, outputs, initial weights, recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.errors import ConfigError, PunaError, RequestError
from puna.model import (
    CausalLMOutputWithPast,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import distance, pair, ragged

IDS = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))


def small_model(**fields: Any) -> LlamaForCausalLM:
    """Returns puna's model of a small configuration with some fields changed."""
    model: LlamaForCausalLM = pair(config_of(**fields))[0]
    return model


# ---- outputs


def test_outputs_can_be_read_like_dataclasses_tuples_and_mappings() -> None:
    model = small_model(use_cache=False)
    out = model(IDS, labels=IDS)
    assert isinstance(out, CausalLMOutputWithPast)
    assert out[0] is out.loss is out["loss"]
    assert out[1] is out.logits
    assert list(out) == list(out.keys()) == ["loss", "logits"]
    assert "hidden_states" not in out
    assert out.get("attentions") is None
    assert out.to_tuple() == out[:] == (out.loss, out.logits)
    assert model(IDS)[0].shape == (2, 9, 67)
    with pytest.raises(KeyError, match="hidden_states"):
        out["hidden_states"]


def test_tuples_have_the_documented_order() -> None:
    model = small_model()
    flags: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    loss, logits, cache, states, weights = model(IDS, labels=IDS, return_dict=False, **flags)
    out = model(IDS, labels=IDS, **flags)
    assert torch.equal(loss, out.loss)
    assert torch.equal(logits, out.logits)
    assert (len(cache), len(states), len(weights)) == (2, 3, 2)
    assert torch.equal(states[-1], out.hidden_states[-1])
    assert isinstance(small_model(return_dict=False)(IDS), tuple)
    out = small_model(output_hidden_states=True, output_attentions=True)(IDS)
    assert len(out.hidden_states) == 3
    assert out.attentions[0].shape == (2, 4, 9, 9)


# ---- causal language model


def test_the_loss_is_0_if_all_labels_are_ignored() -> None:
    model = small_model()
    out = model(IDS, labels=torch.full_like(IDS, -100))
    assert out.loss == 0
    out.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_loss_is_float32_for_any_dtype_of_the_weights() -> None:
    model = small_model().to(torch.bfloat16)
    out = model(IDS, labels=IDS)
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    expected = F.cross_entropy(out.logits[:, :-1].double().flatten(0, 1), IDS[:, 1:].flatten())
    assert distance(out.loss.double(), expected) <= 1e-6


@torch.no_grad()
def test_logits_to_keep_selects_tokens() -> None:
    model = small_model()
    logits = model(IDS).logits
    assert distance(model(IDS, logits_to_keep=1).logits, logits[:, -1:]) <= 1e-6
    assert distance(model(IDS, num_logits_to_keep=4).logits, logits[:, -4:]) <= 1e-6
    assert distance(model(IDS, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]]) <= 1e-6
    with pytest.raises(RequestError, match="logits_to_keep is 1"):
        model(IDS, labels=IDS, logits_to_keep=1)
    loss = model(IDS, labels=IDS[:, -4:], logits_to_keep=4).loss  # as in transformers 5
    assert distance(loss, F.cross_entropy(logits[:, -4:-1].flatten(0, 1), IDS[:, -3:].flatten())) <= 1e-6


@torch.no_grad()
def test_pretraining_tp_would_change_only_rounding() -> None:
    """transformers 4.34 computes linear layers in pretraining_tp slices; puna ignores the setting."""
    sizes: dict[str, Any] = {"vocab_size": 68, "num_key_value_heads": 2}
    sliced, unsliced = (LlamaForCausalLM(config_of(pretraining_tp=n, **sizes)).eval() for n in (2, 1))
    sliced.load_state_dict(unsliced.state_dict())
    assert torch.equal(sliced(IDS).logits, unsliced(IDS).logits)
    for layer in sliced.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.forward = lambda x, w=linear.weight: sum(
                F.linear(part, slice_) for part, slice_ in zip(x.chunk(2, dim=-1), w.chunk(2, dim=1), strict=True)
            )
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.gate_proj):
            linear.forward = lambda x, w=linear.weight: torch.cat([F.linear(x, part) for part in w.chunk(2)], dim=-1)
    result = sliced(IDS).logits
    assert not torch.equal(result, unsliced(IDS).logits)  # the slices change the rounding
    assert distance(result, unsliced(IDS).logits) <= 2e-6


@pytest.mark.parametrize("count", ["neither", "both"])
def test_exactly_one_of_ids_and_embeddings_is_required(count: str) -> None:
    model = small_model()
    inputs = {} if count == "neither" else {"input_ids": IDS, "inputs_embeds": model.get_input_embeddings()(IDS)}
    with pytest.raises(PunaError, match=f"exactly one of input_ids or inputs_embeds; {count} was given"):
        model(**inputs)


@pytest.mark.parametrize("invalid", [67, -1])
def test_ids_outside_the_vocabulary_are_errors(invalid: int) -> None:
    with pytest.raises(PunaError, match=rf"holds {invalid}; the embedding has rows 0 to 66.*resize_token_embeddings"):
        small_model()(torch.tensor([[3, invalid, 4]]))


@pytest.mark.parametrize("shape", [(3,), (1, 0)])
def test_ids_with_an_invalid_shape_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(PunaError, match="batch, tokens"):
        small_model()(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("shape", [(8,), (3, 9), (1, 2, 9)])
def test_positions_with_an_invalid_shape_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(PunaError, match=r"position_ids.*\(2, 9\)"):
        small_model()(IDS, position_ids=torch.zeros(shape, dtype=torch.long))


def test_the_error_for_an_unknown_activation_lists_the_supported_ones() -> None:
    with pytest.raises(ConfigError, match=r"swoosh.*gelu.*silu"):
        LlamaModel(config_of(hidden_act="swoosh"))


@torch.no_grad()
def test_an_activation_may_be_a_callable() -> None:
    with_callable, with_name = (
        LlamaForCausalLM(config_of(hidden_act=torch.relu)),
        LlamaForCausalLM(config_of(hidden_act="relu")),
    )
    with_callable.load_state_dict(with_name.state_dict())
    assert torch.equal(with_callable(IDS).logits, with_name(IDS).logits)


# ---- embeddings and weights


def test_initial_weights_have_the_configured_standard_deviation() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config_of(pad_token_id=5, attention_bias=True, mlp_bias=True, initializer_range=0.03))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.03, rel=0.1), name
            assert float(parameter.detach().mean().abs()) < 0.003, name
    assert (model.model.embed_tokens.weight[5] == 0).all()
    assert (model.lm_head.weight[5] != 0).any()
    model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert (model.model.embed_tokens.weight.grad[5] == 0).all()  # nn.Embedding excludes padding_idx from the gradient


def test_tied_weights_are_one_parameter_and_can_be_replaced() -> None:
    model = small_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() == small_model().num_parameters() - 67 * 48
    assert "lm_head.weight" in model.state_dict()
    model.to(torch.float64)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    other = torch.nn.Embedding(67, 48)
    model.set_input_embeddings(other)
    model.tie_weights()
    assert model.lm_head.weight is other.weight


def test_getters_return_the_modules_and_setters_replace_them() -> None:
    model, other = small_model(), small_model()
    assert model.get_input_embeddings() is model.model.embed_tokens is model.model.get_input_embeddings()
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_decoder() is model.model is model.model.get_decoder()
    assert model.model.get_output_embeddings() is None
    model.set_output_embeddings(other.lm_head)
    model.set_decoder(other.model)
    assert model.get_output_embeddings() is other.lm_head
    assert model.get_decoder() is other.model
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("arguments", "rows"), [((70, None), 70), ((None, 32), 96), ((68, 8), 72), ((60, None), 60)])
def test_resize_token_embeddings_keeps_the_old_rows(
    tied: bool, arguments: tuple[int | None, int | None], rows: int
) -> None:
    model = small_model(tie_word_embeddings=tied, pad_token_id=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embedding = model.resize_token_embeddings(*arguments)
    assert embedding is model.get_input_embeddings()
    assert model.config.vocab_size == embedding.num_embeddings == model.lm_head.out_features == rows
    assert embedding.padding_idx == 3
    common = min(67, rows)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        resized = model.state_dict()[name]
        assert resized.shape == (rows, 48)
        assert torch.equal(resized[:common], before[name][:common])
        assert resized[common:].numel() == 0 or resized[common:].std() == pytest.approx(0.2, rel=0.25)
    assert (model.lm_head.weight is embedding.weight) == tied
    assert model(torch.tensor([[rows - 1]])).logits.shape == (1, 1, rows)


def test_resizing_without_a_size_does_nothing_and_the_padding_token_cannot_be_removed() -> None:
    model = small_model(pad_token_id=5)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(PunaError, match="new_num_tokens is 5"):
        model.resize_token_embeddings(5)


def test_frozen_weights_stay_frozen_when_resized() -> None:
    model = small_model()
    model.requires_grad_(False)
    model.resize_token_embeddings(70)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.num_parameters(only_trainable=True) == 0


# ---- gradient checkpointing


@pytest.mark.parametrize("past", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_no_cache(past: bool) -> None:
    fields: dict[str, Any] = {"attention_dropout": 0.3, "num_key_value_heads": 2}
    gradients = []
    for checkpointing in (False, True):
        model = small_model(**fields).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        prefix = [(torch.randn(2, 2, 3, 12), torch.randn(2, 2, 3, 12)) for _ in range(2)] if past else None
        torch.manual_seed(2)
        out = model(IDS, labels=IDS, past_key_values=prefix, use_cache=True, output_hidden_states=True)
        assert model.is_gradient_checkpointing == checkpointing
        assert (out.past_key_values is None) == checkpointing
        assert len(out.hidden_states) == 3
        out.loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradient_checkpointing_saves_memory_and_is_off_in_evaluation() -> None:
    def saved_elements(model: LlamaForCausalLM) -> int:
        """Returns the number of elements that autograd saves for the backward pass."""
        size = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(IDS, labels=IDS)
        return size

    model = small_model(num_hidden_layers=4).train()
    plain = saved_elements(model)
    model.gradient_checkpointing_enable()
    assert saved_elements(model) < plain / 2
    assert model.eval()(IDS).past_key_values is not None
    model.train().gradient_checkpointing_disable()
    assert saved_elements(model) == plain


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_reach_trained_layers_under_frozen_embeddings(use_reentrant: bool) -> None:
    model = small_model().train()
    model.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


# ---- classification


def classifier(**fields: Any) -> LlamaForSequenceClassification:
    """Returns a random classifier of a small configuration with some fields changed."""
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config_of(**fields)).eval()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding_from", ["mask", "pad", "both"])
def test_the_last_real_token_is_pooled(side: str, padding_from: str) -> None:
    model = classifier(num_labels=3, pad_token_id=None if padding_from == "mask" else 0)
    ids, mask, positions = ragged(model.config, (9, 14, 5), side)
    arguments = {} if padding_from == "pad" else {"attention_mask": mask}
    logits = model(ids, position_ids=positions, **arguments).logits
    base = model.model(ids, position_ids=positions, **arguments).last_hidden_state
    last = [8, 13, 4] if side == "right" else [13, 13, 13]
    assert distance(logits, model.score(base[torch.arange(3), last])) <= 1e-6


@torch.no_grad()
def test_the_mask_takes_precedence_over_the_padding_id() -> None:
    model = classifier(num_labels=3, pad_token_id=2)  # pad == eos
    ids = torch.tensor([[5, 2, 7, 2], [5, 6, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    base = model.model(ids, attention_mask=mask).last_hidden_state
    expected = model.score(base[torch.arange(2), [3, 2]])
    assert distance(model(ids, attention_mask=mask).logits, expected) <= 1e-6
    # without a mask, the padding id decides
    base = model.model(ids).last_hidden_state
    assert distance(model(ids).logits, model.score(base[torch.arange(2), [2, 1]])) <= 1e-6


@torch.no_grad()
def test_without_mask_and_padding_id_the_last_token_is_pooled() -> None:
    model = classifier(num_labels=3)
    expected = model.score(model.model(IDS).last_hidden_state[:, -1])
    assert distance(model(IDS).logits, expected) <= 1e-6
    assert distance(model(inputs_embeds=model.model.embed_tokens(IDS)).logits, expected) <= 1e-6
    # with a cache the mask is longer than the tokens
    cache = model(IDS[:, :4]).past_key_values
    result = model(IDS[:, 4:], attention_mask=torch.ones(2, 9), past_key_values=cache).logits
    assert distance(result, expected) <= 1e-5


LOSSES: list[tuple[int, str | None, Tensor, Any]] = [
    (1, None, torch.tensor([0.5, -2.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
    (1, None, torch.tensor([[0.5], [-2.0]]), F.mse_loss),
    (3, "regression", torch.tensor([[0.5, 1, 2], [-2.0, 0, 1]]), F.mse_loss),
    (3, None, torch.tensor([2, 0]), F.cross_entropy),
    (3, None, torch.tensor([[1.0, 0, 1], [0, 0, 1]]), F.binary_cross_entropy_with_logits),
    (3, "multi_label_classification", torch.tensor([[1, 0, 1], [0, 0, 1]]), None),
]


@pytest.mark.parametrize(("labels", "problem", "target", "expected"), LOSSES)
def test_classification_losses_equal_those_of_pytorch(
    labels: int, problem: str | None, target: Tensor, expected: Any
) -> None:
    model = classifier(num_labels=labels, problem_type=problem)
    out = model(IDS, labels=target)
    if expected is None:
        assert distance(out.loss, F.binary_cross_entropy_with_logits(out.logits, target.float())) <= 1e-6
    else:
        assert distance(out.loss, expected(out.logits, target)) <= 1e-6
    kinds = {F.mse_loss: "regression", F.cross_entropy: "single_label_classification"}
    inferred = "regression" if labels == 1 else kinds.get(expected, "multi_label_classification")
    assert model.config.problem_type == inferred  # the first labels set it, as in transformers: it is saved
    loss, logits = model(IDS, labels=target, return_dict=False, use_cache=False)
    assert torch.equal(loss, out.loss)
    assert logits.shape == (2, labels)
