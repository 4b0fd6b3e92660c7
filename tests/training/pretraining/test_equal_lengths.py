"""Batches of documents of equal length, which the fused forward pass computes as rows: compared with transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from puna import LlamaConfig
from puna.training.batch import Batch, Example, Source
from puna.training.forward.choice import forward_for
from puna.training.methods.table import METHODS
from puna.training.pretraining.new_model import new_model
from puna.training.settings import TrainingSettings

SHAPE = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2, "vocab_size": 50}


def batch_of(count, length):
    random, weights = np.random.default_rng(0), np.ones(length, np.float32)
    weights[0] = 0
    rows = random.integers(0, 50, (count, length)).astype(np.int32)
    return Batch.of([Example(row, weights, None, Source("rows", index)) for index, row in enumerate(rows)], 0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("length", [2, 9, 300])
def test_losses_and_gradients_are_those_of_transformers(heads, kv_heads, length, checkpointing):
    transformers = pytest.importorskip("transformers")
    names = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": heads == kv_heads}
    model = new_model(LlamaConfig(**SHAPE, **names, max_position_embeddings=512), 0.2, seed=1)
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **names, max_position_embeddings=512))
    peer.load_state_dict(model.state_dict())
    settings = TrainingSettings.of({"method": "full", "dtype": "float32"})
    trainable = METHODS["full"].attach(model, None, settings)
    forward = forward_for(trainable, "fused", checkpointing)
    batch = batch_of(3, length)
    loss = forward.losses(batch, 1 / batch.total_weight)
    loss.backward()
    ids = torch.from_numpy(batch.ids).view(3, length)
    expected = peer(ids, labels=ids).loss
    expected.backward()
    assert abs(float(loss.detach()) / float(expected.detach()) - 1) < 1e-5
    total = torch.stack([parameter.grad.norm() for parameter in peer.parameters()]).norm()
    for name, parameter in peer.named_parameters():
        error = (trainable.parameters[name].grad - parameter.grad).norm()
        assert error < 2e-5 * (parameter.grad.norm() + 1e-2 * total), name  # that of q is 0 for two tokens
