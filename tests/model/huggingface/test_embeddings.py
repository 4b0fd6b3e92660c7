"""Resizing the vocabulary, accessors of embeddings and head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from puna.errors import RequestError
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from puna.model.huggingface.embeddings import rows_like
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

SIZES: list[tuple[tuple[int | None, ...], int]] = [
    ((70,), 70), ((70, 8), 72), ((None, 64), 128), ((50,), 50), ((None,), 67),
]  # fmt: skip
IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("arguments", "rows"), SIZES)
def test_sizes_equal_those_of_transformers(tied: bool, mean: bool, arguments: Any, rows: int) -> None:
    model, reference = pair(config_of(tie_word_embeddings=tied))
    old = model.get_input_embeddings().weight.detach().clone()
    results = [each.resize_token_embeddings(*arguments, mean_resizing=mean) for each in (model, reference)]
    for each, embeddings in zip((model, reference), results, strict=True):
        assert embeddings is each.get_input_embeddings()
        head = each.get_output_embeddings()
        assert embeddings.weight.shape == head.weight.shape == (rows, 48)
        assert (head.out_features, each.config.vocab_size) == (rows, rows)
        assert (head.weight is embeddings.weight) == tied
        assert torch.equal(embeddings.weight[: min(rows, 67)], old[:rows])
        if arguments != (None,):
            assert each.vocab_size == rows
    assert torch.allclose(model(IDS % rows).logits[..., :50], reference(IDS % rows).logits[..., :50], atol=1e-5)
    if rows > 67 and mean:
        for each in (model, reference):
            new = each.get_input_embeddings().weight[67:]
            assert torch.allclose(new, old.mean(0).expand_as(new), atol=1e-3)


def test_mean_resizing_keeps_the_covariance_of_the_old_rows() -> None:
    torch.manual_seed(0)
    old = torch.randn(500, 4) @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])) + 7
    new = rows_like(old, 20_000)
    assert torch.allclose(new.mean(0), old.mean(0), atol=1e-4)
    assert torch.allclose((new - old.mean(0)).std(0), old.std(0) * 1e-9**0.5, rtol=0.05)
    constant = rows_like(torch.ones(5, 3, dtype=torch.bfloat16), 2)
    assert torch.equal(constant, torch.ones(2, 3, dtype=torch.bfloat16))


def test_the_multiple_must_be_an_integer() -> None:
    for kind in (ValueError, TypeError):
        with pytest.raises(kind, match=r"Asking to pad the embedding matrix to a multiple of `1\.3`, which is not and"):
            LlamaModel(config_of()).resize_token_embeddings(70, pad_to_multiple_of=1.3)  # type: ignore[arg-type]


def test_heads_of_other_models_stay_unchanged() -> None:
    model = LlamaForSequenceClassification(config_of(pad_token_id=0))
    score = model.score.weight.detach().clone()
    model.resize_token_embeddings(80)
    assert model.model.embed_tokens.padding_idx == 0
    assert torch.equal(model.score.weight, score)
    assert model.get_output_embeddings() is None


def test_embeddings_heads_and_decoders_can_be_replaced() -> None:
    model = LlamaForCausalLM(config_of())
    embeddings, head, decoder = nn.Embedding(67, 48), nn.Linear(48, 67, bias=False), LlamaModel(config_of())
    model.set_decoder(decoder)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
    assert model.get_decoder() is model.base_model is model.model is decoder
    assert decoder.get_input_embeddings() is model.get_input_embeddings() is embeddings
    assert model.get_output_embeddings() is model.lm_head is head
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert head.weight is embeddings.weight
    classifier = LlamaForSequenceClassification(config_of())
    classifier.set_decoder(decoder)
    assert classifier.model is decoder
    assert decoder.get_encoder() is decoder
    with pytest.raises(RequestError, match="is itself the decoder"):
        decoder.set_decoder(decoder)
    with pytest.raises(AttributeError, match="lm_head"):
        _ = classifier.lm_head


def test_there_are_no_position_embeddings() -> None:
    model = LlamaModel(config_of())
    with pytest.raises(NotImplementedError, match="no position embeddings"):
        model.get_position_embeddings()
    with pytest.raises(NotImplementedError, match="rope_scaling"):
        model.resize_position_embeddings(100)


def test_the_hook_of_accelerate_moves_to_the_new_embeddings() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = LlamaForCausalLM(config_of())
    hooks.add_hook_to_module(model.model.embed_tokens, hooks.AlignDevicesHook("cpu"))
    model.resize_token_embeddings(70)
    assert isinstance(model.model.embed_tokens._hf_hook, hooks.AlignDevicesHook)
