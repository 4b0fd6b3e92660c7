"""Masks: queries that may attend to no key, invalid shapes, padded batches compared with single texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from puna.errors import PunaError
from puna.model import LlamaForCausalLM
from puna.model.attention import attend, build_mask
from tests.helpers.configurations import CONFIGURATIONS, config_of
from tests.helpers.reference_models import distance, pair, ragged

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("form", ["2d", "bool", "lowest", "twice_lowest"])
def test_queries_that_may_attend_to_no_key_have_zero_outputs_and_gradients(
    dtype: torch.dtype, eager: bool, form: str
) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 6, 8, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, 2, 6, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    allowed = torch.ones(6, 6, dtype=torch.bool).tril() & padding[:, None, None].bool()
    lowest = torch.finfo(dtype).min
    forms: dict[str, Tensor] = {
        "2d": padding,
        "bool": allowed,
        "lowest": torch.zeros(2, 1, 6, 6, dtype=dtype).masked_fill(~allowed, lowest),
        # transformers 4.34 adds two masks, for later keys and for padding
        "twice_lowest": torch.zeros(2, 1, 6, 6, dtype=dtype).masked_fill(~allowed, lowest) * 2,
    }
    mask = build_mask(forms[form], torch.zeros(2, 6, 1, dtype=dtype), 0, explicit=eager)
    out, weights = attend(q, k, v, mask, 0.0, eager)
    assert torch.equal(out[0, :, :2], torch.zeros(4, 2, 8, dtype=dtype))
    assert weights is None or torch.equal(weights[0, :, :2], torch.zeros(4, 2, 6, dtype=dtype))
    out.float().square().sum().backward()
    for tensor in (q, k, v):
        assert torch.isfinite(tensor.grad).all()
    assert (q.grad[0, :, :2] == 0).all()
    assert (k.grad[0, :, :2] == 0).all()
    assert (v.grad[0, :, :2] == 0).all()
    # the other rows equal those of the text without padding
    unpadded = build_mask(None, torch.zeros(1, 4, 1, dtype=dtype), 0, explicit=eager)
    expected, _ = attend(q[:1, :, 2:], k[:1, :, 2:], v[:1, :, 2:], unpadded, 0.0, eager)
    assert distance(out[:1, :, 2:].float(), expected.float()) <= (1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("past", [0, 3])
def test_a_mask_without_padding_is_no_mask_on_the_cpu(past: int) -> None:
    """PyTorch's kernel for plain causal order is faster than kernels with a mask."""
    x = torch.zeros(2, 4, 1)
    assert build_mask(torch.ones(2, 4 + past), x, past, explicit=False).causal == (past == 0)
    padding = torch.ones(2, 4 + past)
    padding[1, 0] = 0
    mask = build_mask(padding, x, past, explicit=False)
    assert not mask.causal
    assert mask.allowed is not None
    assert not mask.allowed[1, ..., 0].any() or mask.empty is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_left_padded_batch_trains_without_nan(dtype: torch.dtype) -> None:
    model = LlamaForCausalLM(config_of(num_key_value_heads=2)).to(dtype)
    ids, mask, _ = ragged(model.config, (9, 3, 0), "left")  # the last text is only padding
    model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert any(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_single_texts(name: str, side: str) -> None:
    model, _ = pair(config_of(**CONFIGURATIONS[name]))
    ids, mask, positions = ragged(model.config, (9, 14, 5), side)
    with torch.no_grad():
        batch = model(ids, attention_mask=mask, position_ids=positions).logits
        for row, keep, logits in zip(ids, mask.bool(), batch, strict=True):
            assert distance(logits[keep], model(row[keep][None]).logits[0]) <= 1e-5


def test_default_positions_continue_those_of_the_cache_and_ignore_the_mask() -> None:
    model, _ = pair(config_of())
    ids, mask, _ = ragged(model.config, (9, 5), "left")
    with torch.no_grad():
        out = model(ids, attention_mask=mask)
        expected = model(ids, attention_mask=mask, position_ids=torch.arange(9)[None])
        assert torch.equal(out.logits, expected.logits)
        step = torch.tensor([[5], [6]])
        longer = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1)
        logits = model(step, attention_mask=longer, past_key_values=out.past_key_values).logits
        expected = model(torch.cat((ids, step), dim=1), attention_mask=longer).logits[:, -1:]
        assert distance(logits, expected) <= 1e-5


def test_a_mask_with_four_dimensions_may_differ_by_head() -> None:
    model, _ = pair(config_of(num_hidden_layers=1))
    ids = torch.randint(3, 67, (2, 5))
    allowed = torch.ones(2, 4, 5, 5, dtype=torch.bool).tril()
    allowed[:, 1, :, :2] = False  # the first two queries of this head may attend to no key
    with torch.no_grad():
        fused = model(ids, attention_mask=allowed)
        eager = model(ids, attention_mask=allowed, output_attentions=True)
    assert distance(fused.logits, eager.logits) <= 1e-5
    assert (eager.attentions[0][:, 1, :, :2] == 0).all()
    assert (eager.attentions[0][:, 1, :2] == 0).all()
    assert (eager.attentions[0][:, 0].sum(-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(2, 4), r"\(2, 4\).*\(2, 5\)"),
        (torch.ones(1, 5), r"\(1, 5\).*\(2, 5\)"),
        (torch.ones(2, 1, 4, 5), r"\(2, 1, 4, 5\).*\(5, 5\)"),
        (torch.ones(3, 1, 5, 5), r"\(3, 1, 5, 5\).*batch, 2"),
        (torch.ones(2, 1, 5, 5, dtype=torch.long), "int64.*bool"),
        (torch.ones(2, 5, 5), r"\(2, 5, 5\)"),
    ],
)
def test_masks_with_an_invalid_shape_or_type_are_errors(mask: Tensor, text: str) -> None:
    with pytest.raises(PunaError, match=text):
        LlamaForCausalLM(config_of())(torch.full((2, 5), 3), attention_mask=mask)


def test_attention_dropout_is_applied_only_in_training() -> None:
    model, _ = pair(config_of(attention_dropout=0.5))
    ids = torch.randint(3, 67, (2, 12))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        weights = model(ids, output_attentions=True).attentions[0]
        assert not torch.equal(model(ids).logits, model(ids).logits)
    dropped = (weights == 0)[:, :, torch.ones(12, 12).tril().bool()].float().mean()
    assert 0.4 < dropped < 0.6


def test_attn_implementation_eager_computes_the_same_logits() -> None:
    fused, reference = pair(config_of(num_key_value_heads=2))
    eager = LlamaForCausalLM(config_of(num_key_value_heads=2, attn_implementation="eager")).eval()
    eager.load_state_dict(fused.state_dict())
    ids = torch.randint(3, 67, (2, 12))
    with torch.no_grad():
        out, expected = eager(ids), reference(ids)
    assert out.attentions is None
    assert distance(out.logits, expected.logits) <= 1e-6
    with pytest.raises(PunaError, match=r"flash_attention_2.*sdpa"):
        LlamaForCausalLM(config_of(attn_implementation="flash_attention_2"))
