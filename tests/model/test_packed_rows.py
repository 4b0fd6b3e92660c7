"""Rows that hold several sequences: each is computed as if it were alone, and as transformers computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import puna
from puna.errors import RequestError
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

LENGTHS = ((5, 1, 7), (2, 4, 7))
"""Lengths of the sequences of each row."""

IDS = torch.randint(0, 90, (2, 13), generator=torch.Generator().manual_seed(3))
POSITIONS = torch.tensor([[token for length in row for token in range(length)] for row in LENGTHS])
STARTS = torch.tensor([0, 5, 6, 13, 15, 19, 26], dtype=torch.int32)
NUMBERS = torch.tensor([[number for number, length in enumerate(row) for _ in range(length)] for row in LENGTHS])

ARGUMENTS: dict[str, dict[str, Any]] = {
    "positions": {"position_ids": POSITIONS},
    "boundaries": {"cu_seq_lens_q": STARTS, "cu_seq_lens_k": STARTS, "max_length_q": 7, "max_length_k": 7},
    "numbers": {"seq_idx": NUMBERS.int()},
    "all": {"position_ids": POSITIONS, "cu_seq_lens_q": STARTS, "cu_seq_lens_k": STARTS, "seq_idx": NUMBERS},
    "boundaries with other positions": {"position_ids": torch.arange(13)[None], "cu_seq_lens_q": STARTS},
    "boundaries with a mask": {"cu_seq_lens_q": STARTS, "attention_mask": torch.ones(2, 13, dtype=torch.long)},
}


def new_model(**fields: Any) -> puna.LlamaForCausalLM:
    """Returns a model with random weights."""
    torch.manual_seed(0)
    return puna.LlamaForCausalLM(config_of(vocab_size=90, **fields)).eval()


def alone(model: puna.LlamaForCausalLM) -> torch.Tensor:
    """Returns the logits of the rows, each sequence computed by a separate call."""
    rows = zip(IDS, LENGTHS, strict=True)
    return torch.cat([torch.cat([model(part[None]).logits for part in ids.split(n)], dim=1) for ids, n in rows])


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_each_sequence_is_computed_as_if_alone(arguments: dict[str, Any]) -> None:
    model = new_model()
    expected = alone(model)
    result = model(IDS, use_cache=False, **arguments).logits
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert (model(IDS, use_cache=False).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_gradients_equal_those_of_transformers(attention: str) -> None:
    model, reference = pair(config_of(vocab_size=90))
    model.set_attn_implementation(attention)
    results = []
    for each in (model, reference):
        out = each.train()(IDS, labels=IDS.masked_fill(POSITIONS == 0, -100), position_ids=POSITIONS, use_cache=False)
        out.loss.backward()
        results.append((out.logits, {name: parameter.grad for name, parameter in each.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_a_pass_that_returns_a_cache_separates_only_by_arguments() -> None:
    """As in transformers, where positions that restart separate sequences only without a cache."""
    model, reference = pair(config_of(vocab_size=90))
    joined = model(IDS, position_ids=POSITIONS, use_cache=True).logits
    torch.testing.assert_close(joined, reference(IDS, position_ids=POSITIONS, use_cache=True).logits)
    torch.testing.assert_close(model(IDS, seq_idx=NUMBERS, use_cache=True).logits, alone(model))


def test_padding_of_a_packed_row_is_not_seen() -> None:
    model = new_model()
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, 3:5] = 0  # the end of the first sequence
    result = model(IDS, attention_mask=mask, cu_seq_lens_q=STARTS, use_cache=False).logits
    kept = mask.bool()
    torch.testing.assert_close(result[kept], alone(model)[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", [ARGUMENTS["positions"], ARGUMENTS["boundaries"]], ids=["positions", "starts"])
def test_dynamic_frequencies_depend_on_the_length_of_each_sequence(arguments: dict[str, Any]) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    model = new_model(rope_scaling=scaling, max_position_embeddings=6)
    result = model(IDS, use_cache=False, **arguments).logits
    torch.testing.assert_close(result, alone(model), rtol=1e-5, atol=1e-5)


def test_graphs_separate_sequences() -> None:
    model = new_model()
    program = torch.export.export(model, (IDS,), {"position_ids": torch.arange(13).expand(2, 13), "use_cache": False})
    result = program.module()(IDS, position_ids=POSITIONS, use_cache=False).logits
    torch.testing.assert_close(result, alone(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seq_lens_q": STARTS[:-1]}, "increase from 0 to 26"),
        ({"cu_seq_lens_q": torch.tensor([0, 14, 26])}, "a sequence must end with its row of 13"),
        ({"cu_seq_lens_q": STARTS.float()}, "must be an integer tensor"),
        ({"cu_seq_lens_q": STARTS, "cu_seq_lens_k": STARTS[[0, 3, 6]]}, "differ"),
        ({"cu_seq_lens_q": [0, 26]}, "must be a tensor"),
        ({"seq_idx": NUMBERS[:, :4]}, r"must be \(batch, tokens\)"),
        ({"seq_idx": NUMBERS, "attention_mask": torch.ones(2, 1, 13, 13).bool()}, "without an attention_mask of four"),
    ],
)
def test_sequences_that_do_not_match_the_tokens_are_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        new_model()(IDS, use_cache=False, **arguments)


def test_sequences_do_not_follow_cached_tokens() -> None:
    model = new_model()
    cache = model(IDS).past_key_values
    with pytest.raises(RequestError, match="without past_key_values"):
        model(IDS, past_key_values=cache, seq_idx=NUMBERS)
