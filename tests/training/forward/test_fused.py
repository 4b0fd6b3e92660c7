"""The fused forward pass computes the losses and gradients of the modules in float64, and of transformers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from puna.errors import ConfigError
from puna.training.batch import Batch, Example
from puna.training.forward.choice import forward_for
from puna.training.forward.fused import products
from puna.training.forward.fused.model import FusedForward
from puna.training.forward.reference import ReferenceForward
from puna.training.forward.rows import with_noise
from tests.training.forward.batches import attached, error, gradients, new_batch, new_model

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 4}),
    "patterns": ("lora", {"rank": 4, "rank_pattern": {"k_proj": 2}, "targets": ("q_proj", "k_proj", "down_proj")}),
    "dropout": ("lora", {"rank": 4, "dropout": 0.2}),
    "dora": ("lora", {"rank": 4, "dora": True}),
    "saved": ("lora", {"rank": 4, "modules_to_save": ("lm_head",)}),
    "ia3": ("ia3", {}),
    "prompt": ("prompt", {"virtual_tokens": 3, "initialization": "random"}),
    "full": ("full", {}),
}
LENGTHS = (7, 1, 30, 5, 66, 2)


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_those_of_the_modules_in_float64(name):
    method, settings = METHODS[name]
    batch = new_batch(*LENGTHS)
    exact_loss, exact = gradients(ReferenceForward(attached(new_model(torch.float64), method, **settings)), batch)
    loss, values = gradients(FusedForward(attached(new_model(), method, **settings)), batch)
    assert loss == pytest.approx(exact_loss, rel=1e-5)
    assert error(values, exact) < 1e-5
    # In bfloat16, the error is that of the plain modules, whose residual stream is rounded in the same places.
    plain_loss, plain = gradients(ReferenceForward(attached(new_model(torch.bfloat16), method, **settings)), batch)
    loss, values = gradients(FusedForward(attached(new_model(torch.bfloat16), method, **settings)), batch)
    assert abs(loss - exact_loss) < 2 * abs(plain_loss - exact_loss) + 2e-3 * exact_loss
    assert error(values, exact) < 1.5 * error(plain, exact)


class Products(TorchDispatchMode):
    """Collects the types of all products, also those of the backward pass."""

    _ATEN = torch.ops.aten
    PRODUCTS = (_ATEN.mm, _ATEN.bmm, _ATEN.addmm, _ATEN.addmm_, _ATEN.baddbmm, torch.ops.mkldnn._linear_pointwise,
                _ATEN._scaled_dot_product_flash_attention_for_cpu)  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.PRODUCTS:
            self.types.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("kind", [FusedForward, ReferenceForward])
@pytest.mark.parametrize("lengths", [(7, 30, 66), (16, 16)])
def test_products_are_in_float32_where_bfloat16_is_slow(monkeypatch, kind, is_fast, lengths):
    monkeypatch.setattr(products, "has_bf16_products", lambda: is_fast)
    products_of = Products()
    batch = new_batch(*lengths)
    exact_loss, exact = gradients(ReferenceForward(attached(new_model(torch.float64), "full")), batch)
    with products_of:
        loss, values = gradients(kind(attached(new_model(torch.bfloat16), "full")), batch)
    assert loss == pytest.approx(exact_loss, rel=1e-2) and error(values, exact) < 0.06  # bfloat16: 0.038
    assert (torch.bfloat16 in products_of.types) is is_fast
    note = products.note_of_products(torch.bfloat16)
    assert ("float32" in note) is not is_fast and products.note_of_products(torch.float32) == ""


def test_losses_and_gradients_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    model = new_model(tie_word_embeddings=False)
    oracle = transformers.LlamaForCausalLM(transformers.LlamaConfig(**model.config.to_dict()))
    oracle.load_state_dict(model.state_dict())
    oracle = oracle.double()
    batch = new_batch(9, 40, 3)
    total = torch.zeros((), dtype=torch.float64)
    start = 0
    for length in batch.lengths:  # each document alone
        ids, weights = (torch.from_numpy(x[start : start + length]) for x in (batch.ids, batch.weights))
        logits = oracle(ids[None]).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none") @ weights[1:].double()
        start += length
    total.backward()
    loss, values = gradients(FusedForward(attached(model, "full")), batch)
    assert loss == pytest.approx(total.item(), rel=1e-5)
    assert error(values, {name: item.grad for name, item in oracle.named_parameters()}) < 1e-5


@pytest.mark.parametrize("kind", [FusedForward, ReferenceForward])
@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_documents_of_a_batch_do_not_see_each_other(kind, method):
    if method == "prefix" and kind is FusedForward:
        pytest.skip("the fused forward pass does not implement prefixes")
    options = {} if method == "lora" else {"virtual_tokens": 3, "initialization": "random"}
    forward = kind(attached(new_model(), method, **options))
    batch = new_batch(*LENGTHS)
    states = torch.split(forward.hidden(batch).detach(), LENGTHS)
    starts = [sum(LENGTHS[:index]) for index in range(len(LENGTHS))]
    for state, start, length in zip(states, starts, LENGTHS, strict=True):
        part = slice(start, start + length)
        alone = dataclasses.replace(
            batch, ids=batch.ids[part], weights=batch.weights[part], lengths=(length,), sources=batch.sources[:1]
        )
        assert (state - forward.hidden(alone)).norm() < 1e-6 * state.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [FusedForward, ReferenceForward])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("lora", {"rank": 4, "dropout": 0.2}), ("lora", {"rank": 4, "dora": True}), ("ia3", {}), ("full", {})],
)
def test_checkpointing_changes_no_bit(kind, dtype, method, settings):
    batch = new_batch(*LENGTHS)
    loss, values = gradients(kind(attached(new_model(dtype), method, **settings)), batch)
    again, recomputed = gradients(kind(attached(new_model(dtype), method, **settings), checkpointing=True), batch)
    assert loss == again
    assert all(torch.equal(values[name], recomputed[name]) for name in values)


def test_accumulated_gradients_do_not_depend_on_how_a_batch_is_split():
    forward = FusedForward(attached(new_model(), "lora", rank=4))
    batch = new_batch(*LENGTHS)
    scale = 1 / batch.total_weight
    loss, values = gradients(forward, batch, scale)
    for parameter in forward.trainable.parameters.values():
        parameter.grad = None
    total = 0.0
    for first, count in ((0, 2), (2, 1), (3, 3)):
        start, lengths = sum(LENGTHS[:first]), LENGTHS[first : first + count]
        part = slice(start, start + sum(lengths))
        piece = dataclasses.replace(
            batch, ids=batch.ids[part], weights=batch.weights[part], lengths=lengths, sources=batch.sources[:count]
        )
        piece_loss = forward.losses(piece, scale)
        piece_loss.backward()
        total += piece_loss.item()
    assert total == pytest.approx(loss, rel=1e-6)
    parts = {name: item.grad.double() for name, item in forward.trainable.parameters.items()}
    assert error(parts, values) < 1e-6


def test_dropout_depends_on_the_seed_and_only_occurs_in_training():
    forward = FusedForward(attached(new_model(), "lora", rank=4, dropout=0.5))
    plain = FusedForward(attached(new_model(), "lora", rank=4))
    batch = new_batch(8, 9)
    loss = forward.losses(batch, 1.0).item()
    assert forward.losses(batch, 1.0).item() == loss
    assert forward.losses(dataclasses.replace(batch, seeds=tuple(range(1, 1 + len(batch.lengths)))), 1.0).item() != loss
    forward.training = False
    assert forward.losses(batch, 1.0).item() == plain.losses(batch, 1.0).item() != loss


NOISE = {**{name: METHODS[name] for name in ("dropout", "full", "prompt")}, "prefix": ("prefix", {"virtual_tokens": 2})}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_that_of_neftune_in_training_and_absent_in_evaluation(name):
    """Noise of a document is uniform in [-1, 1) times alpha / sqrt(n D), in addition to its embeddings."""
    method, settings = NOISE[name]
    settings = settings | ({} if method in ("lora", "full") else {"initialization": "random"})
    batch, alpha = new_batch(300, 1, 40), 5.0
    exact_loss, exact = gradients(
        ReferenceForward(attached(new_model(torch.float64), method, **settings), noise=alpha), batch
    )
    forward = forward_for(attached(new_model(), method, **settings), noise=alpha)
    loss, values = gradients(forward, batch)
    assert loss == pytest.approx(exact_loss, rel=1e-5) and error(values, exact) < 1e-5
    assert forward.losses(batch, 1.0).item() == loss
    assert forward.losses(dataclasses.replace(batch, seeds=tuple(range(1, 1 + len(batch.lengths)))), 1.0).item() != loss
    plain = forward_for(attached(new_model(), method, **settings))
    forward.training = plain.training = False
    assert forward.losses(batch, 1.0).item() == plain.losses(batch, 1.0).item() != loss


def test_an_evaluation_between_two_steps_changes_no_bit_of_the_gradients():
    forward = FusedForward(attached(new_model(torch.bfloat16), "lora", rank=4))
    batch = new_batch(*LENGTHS)
    _, before = gradients(forward, batch)
    with torch.no_grad():
        forward.training = False
        forward.losses(new_batch(50, seed=3), 1.0)
        forward.training = True
    _, after = gradients(forward, batch)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_batch_without_supervised_tokens_has_gradients_of_zero():
    batch = new_batch(4, 5)
    batch.weights[:] = 0
    for kind in (FusedForward, ReferenceForward):
        loss, values = gradients(kind(attached(new_model(), "lora", rank=4)), batch)
        assert loss == 0
        assert all(not value.any() for value in values.values())


def test_frozen_matrices_are_in_memory_once_and_keep_their_values():
    model = new_model(torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients(FusedForward(attached(model, "lora", rank=4)), new_batch(4, 5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    attention = model.model.layers[0].self_attn
    storages = {getattr(attention, name).weight.untyped_storage().data_ptr() for name in ("q_proj", "k_proj", "v_proj")}
    assert len(storages) == 1


def test_the_reference_is_used_for_what_fused_does_not_implement():
    assert forward_for(attached(new_model(), "lora", rank=4)).name == "fused"
    prefix = attached(new_model(), "prefix", virtual_tokens=2, initialization="random")
    assert forward_for(prefix).name == "reference, since fused does not implement prefixes"
    with pytest.raises(
        ConfigError, match="forward is 'fused', which does not implement prefixes; set forward to 'auto'"
    ):
        forward_for(prefix, "fused")
    assert forward_for(attached(new_model(hidden_act="gelu"), "lora", rank=4)).name.endswith("the activation gelu")


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize(("dropout", "noise"), [(0.3, 0.0), (0.0, 5.0)])
def test_random_numbers_do_not_depend_on_how_a_step_is_split(implementation, dropout, noise):
    trainable = attached(new_model(), "lora", rank=4, dropout=dropout)
    forward = forward_for(trainable, implementation, noise=noise)
    whole = new_batch(3, 7, 5)
    examples = [
        Example(ids.astype(np.int32), weights, None, source)
        for ids, weights, source in zip(
            np.split(whole.ids, [3, 10]), np.split(whole.weights, [3, 10]), whole.sources, strict=True
        )
    ]
    loss, expected = gradients(forward, Batch.of(examples, 7))
    parts = [Batch.of([examples[place] for place in places], 7, places) for places in ((0, 2), (1,))]
    (first, left), (second, right) = (gradients(forward, part) for part in parts)
    assert first + second == pytest.approx(loss, rel=1e-6)
    assert error({name: left[name] + right[name] for name in left}, expected) < 1e-5
    assert gradients(forward, Batch.of(examples, 8))[0] != pytest.approx(loss, rel=1e-4)  # other seeds, other numbers
    forward.training = False
    plain = forward_for(trainable, implementation)
    plain.training = False
    assert forward.losses(whole, 1.0).item() == plain.losses(whole, 1.0).item()


def test_the_noise_of_neftune_has_the_published_range():
    """arXiv:2310.05914, algorithm 1: uniform in (-1, 1), times alpha / sqrt(L d)."""
    batch = new_batch(50, 200)
    noise = with_noise(torch.zeros(250, 64), batch, 5.0)
    for length, part in zip(batch.lengths, torch.split(noise, [50, 200]), strict=True):
        scaled = part * math.sqrt(length * 64) / 5.0
        assert 0.99 < scaled.abs().max() <= 1.0 and abs(scaled.mean()) < 0.05
        assert scaled.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.03)


def test_rows_that_pad_a_batch_do_not_change_anything(monkeypatch):
    """Documents of different lengths are padded to 32 tokens, and supervised rows to 32."""
    batch = new_batch(*LENGTHS)
    results = []
    for unit in (1, 32):
        monkeypatch.setattr("puna.training.forward.fused.model._UNIT", unit)
        monkeypatch.setattr("puna.training.forward.fused.head.UNIT", unit)
        trainable = attached(new_model(), "lora", rank=4, dropout=0.2)
        forward = FusedForward(trainable)
        results.append((gradients(forward, batch), forward.hidden(batch)))
    (loss, values), hidden = results[0]
    (padded_loss, padded_values), padded_hidden = results[1]
    assert padded_hidden.shape == (sum(LENGTHS), 64)
    torch.testing.assert_close(padded_hidden, hidden, rtol=1e-5, atol=1e-6)
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    assert error(padded_values, values) < 1e-5


def test_chunks_of_a_head_that_trains_add_up(monkeypatch):
    batch = new_batch(*LENGTHS)
    results = []
    for limit in (100 << 20, 1):  # one chunk, or chunks of 32 rows
        monkeypatch.setattr("puna.training.forward.fused.head.CHUNK_BYTES", limit)
        results.append(gradients(FusedForward(attached(new_model(), "full")), batch))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    assert error(results[1][1], results[0][1]) < 1e-5
