"""Trained adapters are used by `LLM`, merged, written for llama.cpp, and refused where they cannot be applied."""

from __future__ import annotations

import pytest
import torch

from puna import LLM, merge
from puna.adapters import open_adapter, save_adapter
from puna.adapters.torch_apply import apply_adapter
from puna.errors import BackendError, CheckpointError
from puna.model import LlamaForCausalLM
from puna.training.methods.table import METHODS
from puna.training.settings import TrainingSettings
from tests.golden.files import LAYOUTS
from tests.helpers.reference_models import distance

IDS = torch.randint(3, 500, (1, 12), generator=torch.Generator().manual_seed(0))


def trained(folder, method, **settings):
    """Trains for three steps, saves the adapter, and returns the model's logits with it."""
    model = LlamaForCausalLM.from_pretrained(LAYOUTS["hf"])
    trainable = METHODS[method].attach(model, None, TrainingSettings(method=method, **settings))
    optimizer = torch.optim.AdamW(trainable.parameters.values(), lr=2e-2)
    for _ in range(3):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(trainable.adapter(), folder)
    with torch.no_grad():
        return model(IDS).logits[0, -IDS.shape[1] :]


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt", "prefix"])
def test_llm_computes_the_logits_of_the_training(method, tmp_path):
    expected = trained(tmp_path / "new", method)
    with LLM(LAYOUTS["hf"], dtype="float32", adapters={"new": tmp_path / "new"}) as llm:
        context, rest = IDS[0, :1].tolist(), [IDS[0, 1:].tolist()]
        score, plain = (llm.score(context, rest, adapter=name)[0] for name in ("new", None))
    total = expected.log_softmax(-1)[:-1].gather(1, IDS[0, 1:, None]).sum().item()
    assert score == pytest.approx(total, rel=1e-5)
    assert plain != pytest.approx(total, rel=1e-3)


def test_a_merged_model_computes_the_logits_of_the_training(tmp_path):
    expected = trained(tmp_path / "new", "lora", dora=True, rank=4)
    merge(LAYOUTS["hf"], tmp_path / "new", tmp_path / "merged")
    with torch.no_grad():
        assert distance(LlamaForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits[0], expected) <= 1e-5


def test_a_gguf_adapter_computes_the_logits_of_the_training(tmp_path):
    settings = {"rank": 4, "rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"mlp.*": 5.0}}
    expected = trained(tmp_path / "new.gguf", "lora", **settings)
    model = LlamaForCausalLM.from_pretrained(LAYOUTS["hf"])
    with torch.no_grad(), apply_adapter(model, open_adapter(tmp_path / "new.gguf", model.config)):
        assert distance(model(IDS).logits[0], expected) <= 1e-5


def test_rows_of_q_and_k_are_interleaved_and_scales_folded_in_a_gguf_adapter(tmp_path):
    """llama.cpp multiplies by alpha / rank of each tensor, and its rows of q and k are in the order of pairs."""
    gguf = pytest.importorskip("gguf")
    model = LlamaForCausalLM.from_pretrained(LAYOUTS["hf"])
    settings = TrainingSettings(rank=4, rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5.0})
    trainable = METHODS["lora"].attach(model, None, settings)
    with torch.no_grad():
        for change in trainable.low_rank.values():
            change.b.normal_()
    save_adapter(trainable.adapter(), tmp_path / "new.gguf")
    reader = gguf.GGUFReader(tmp_path / "new.gguf")
    alpha = reader.get_field("adapter.lora.alpha").contents()
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    for gguf_name, name, heads in (("attn_q", "self_attn.q_proj", 8), ("attn_v", "self_attn.v_proj", None)):
        a, b = (tensors[f"blk.1.{gguf_name}.weight.lora_{part}"] for part in "ab")
        change = trainable.low_rank[f"model.layers.1.{name}.weight"]
        delta = change.scale * (change.b @ change.a).detach()
        if heads:  # half-split rows to pairs, as convert_hf_to_gguf.py permutes the weights
            delta = delta.view(heads, 2, -1, 64).swapaxes(1, 2).reshape(64, 64)
        assert distance(alpha / len(a) * (b @ a), delta) <= 1e-6


def test_bottlenecks_are_refused_by_name_where_they_cannot_be_applied(tmp_path):
    trained(tmp_path / "new", "bottleneck")
    with pytest.raises(BackendError, match=r"bottleneck.*apply_adapter"):
        LLM(LAYOUTS["hf"], adapters={"new": tmp_path / "new"})
    with pytest.raises(CheckpointError, match=r"bottlenecks.*cannot be merged"):
        merge(LAYOUTS["hf"], tmp_path / "new", tmp_path / "merged")
    adapter = open_adapter(tmp_path / "new", LlamaForCausalLM.from_pretrained(LAYOUTS["hf"]).config)
    with pytest.raises(CheckpointError, match="the kind bottleneck"):
        save_adapter(adapter, tmp_path / "new.gguf")
