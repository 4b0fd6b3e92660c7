"""Adapters on a PyTorch model whose matrices stay packed (`keep_quantized=True`)."""

from __future__ import annotations

import numpy as np
import pytest

from puna.adapters.adapter import Adapter, LowRank, Scaling, TokenRows
from puna.checkpoint.names import EMBEDDING
from puna.errors import RequestError
from tests.checkpoint.test_packed import GPTQ, write_packed

torch = pytest.importorskip("torch")

from puna.adapters.torch_apply import apply_adapter  # noqa: E402
from puna.model import LlamaForCausalLM  # noqa: E402
from puna.model.quantized import PackedMatrix, QuantEmbedding  # noqa: E402

QUERIES, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"


def floats(*shape):
    return np.random.default_rng(len(shape)).normal(0, 0.1, shape).astype(np.float32)


def test_logits_equal_those_of_the_dequantised_model(tmp_path):
    config, _ = write_packed(tmp_path, GPTQ)
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    change = LowRank(a=floats(4, width), b=floats(queries, 4), scale=2.0, magnitude=np.abs(floats(queries)) + 1)
    scaling = Scaling(floats(inner) + 1, "inputs")
    adapter = Adapter(tmp_path, "lora", config, low_rank={QUERIES: change}, scalings={DOWN: scaling})
    ids = torch.arange(20)[None]
    results = []
    for keep in (False, True):
        model = LlamaForCausalLM.from_pretrained(tmp_path, keep_quantized=keep)
        assert any(isinstance(module, PackedMatrix) for module in model.modules()) == keep
        with torch.no_grad():
            before = model(ids).logits
            with apply_adapter(model, adapter):
                results.append(model(ids).logits)
            assert torch.equal(model(ids).logits, before)
    assert torch.equal(*results)
    assert not torch.allclose(results[0], before, atol=1e-2)


def test_new_rows_of_a_packed_embedding_are_refused(tmp_path):
    config, _ = write_packed(tmp_path, GPTQ)
    model = LlamaForCausalLM.from_pretrained(tmp_path, keep_quantized=True)
    blocks = torch.zeros(config.vocab_size, config.hidden_size // 32 * 18, dtype=torch.uint8)
    packed = PackedMatrix(EMBEDDING, "q4_0", blocks, config.hidden_size)
    model.set_input_embeddings(QuantEmbedding(packed, None, torch.float32))
    rows = {EMBEDDING: TokenRows(np.array([3]), floats(1, config.hidden_size))}
    with pytest.raises(RequestError, match=r"embed_tokens.*packed.*keep_quantized"):
        apply_adapter(model, Adapter(tmp_path, "tokens", config, token_rows=rows))
