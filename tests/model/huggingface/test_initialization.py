"""Weights are initialised once, also when the methods of transformers are called again."""

from __future__ import annotations

import pytest
import torch

from puna import LlamaConfig, LlamaForCausalLM, LlamaModel
from puna.errors import RequestError

CONFIG = LlamaConfig(
    vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.5
)


def test_initialised_weights_are_not_changed_by_a_second_call():
    model = LlamaForCausalLM(CONFIG)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.initialize_weights()
    model.post_init()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_new_module_is_initialised():
    model = LlamaForCausalLM(CONFIG)
    model.lm_head = torch.nn.Linear(8, 4000, bias=True)
    model.initialize_weights()
    assert 0.45 < model.lm_head.weight.std().item() < 0.55
    assert not model.lm_head.bias.any()


def test_a_llama_has_no_encoder_to_replace():
    with pytest.raises(RequestError, match="has no encoder; use set_decoder"):
        LlamaModel(CONFIG).set_encoder(encoder=None)
