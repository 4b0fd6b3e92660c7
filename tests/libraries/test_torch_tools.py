"""accelerate, FSDP2, `torch.func`, `torch.export` and safetensors with puna's models."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import load_model, save_model
from torch.func import functional_call, grad, vmap

import puna
from tests.helpers.reference_models import distance
from tests.libraries.models import new_model

IDS = torch.randint(4, 200, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerator_trains_with_mixed_precision(precision: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    model = new_model()
    expected = model(IDS, labels=IDS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    out = prepared(input_ids=IDS, labels=IDS)
    assert type(out) is puna.CausalLMOutputWithPast
    assert out.logits.dtype == torch.float32  # accelerate converts the outputs
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-2 if precision == "bf16" else 1e-5)
    accelerator.backward(out.loss)
    optimizer.step()
    assert prepared(input_ids=IDS, labels=IDS).loss < out.loss
    accelerate.state.AcceleratorState._reset_state(True)


@torch.no_grad()
def test_models_are_dispatched_and_offloaded(tmp_path: Path) -> None:
    expected = new_model()(IDS).logits
    hooked = new_model()
    add_hook_to_module(hooked, AlignDevicesHook(io_same_device=True, execution_device="cpu"))
    assert torch.equal(hooked(input_ids=IDS).logits, expected)
    assert torch.equal(accelerate.cpu_offload(new_model(), execution_device="cpu")(IDS).logits, expected)
    disk = accelerate.disk_offload(new_model(), tmp_path / "disk", execution_device="cpu")
    assert torch.equal(disk(IDS).logits, expected)
    places = dict.fromkeys(("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb"), "cpu")
    model = new_model()
    tokens = model.generate(IDS, max_new_tokens=4, do_sample=False)
    accelerate.dispatch_model(
        model, {**places, "lm_head": "cpu", "model.layers.0": "disk"}, main_device="cpu", offload_dir=tmp_path / "two"
    )
    assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), tokens)


def test_accelerate_saves_and_loads_weights(tmp_path: Path) -> None:
    model = new_model()
    accelerate.Accelerator(cpu=True).save_model(model, tmp_path)
    model.config.save_pretrained(tmp_path)
    assert torch.equal(puna.LlamaForCausalLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)
    with accelerate.init_empty_weights():
        empty = puna.LlamaForCausalLM(model.config)
    loaded = accelerate.load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    accelerate.state.AcceleratorState._reset_state(True)


def test_safetensors_saves_and_loads_tied_models(tmp_path: Path) -> None:
    for tied in (False, True):
        model = new_model(tie_word_embeddings=tied)
        save_model(model, str(tmp_path / "model.safetensors"))
        other = new_model(tie_word_embeddings=tied)
        torch.nn.init.zeros_(other.model.norm.weight)
        load_model(other, str(tmp_path / "model.safetensors"))
        assert torch.equal(other(IDS).logits, model(IDS).logits)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_torch_func_computes_a_gradient_for_each_text() -> None:
    model = new_model()
    parameters = dict(model.named_parameters())

    def loss(values: Any, ids: torch.Tensor) -> torch.Tensor:
        out = functional_call(model, values, (ids[None],), {"labels": ids[None], "use_cache": False})
        return out.loss  # type: ignore[no-any-return]

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, IDS)
    for row in range(2):
        model.zero_grad()
        model(IDS[row : row + 1], labels=IDS[row : row + 1]).loss.backward()
        for name, parameter in model.named_parameters():
            assert distance(each[name][row], parameter.grad) <= 1e-4, name


def test_embeddings_are_averaged_as_sentence_transformers_does(tokenizer: Any) -> None:
    """The recipe of the model cards of sentence-transformers: a mean over the tokens that are not padding."""
    model = new_model(puna.LlamaModel)
    texts = ["The cat sits outside", "A man", "x"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch)[0]
        mask = batch["attention_mask"].unsqueeze(-1).expand(states.size()).float()
        means = torch.sum(states * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
        for text, mean in zip(texts, means, strict=True):
            single = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            assert distance(mean, single) <= 1e-5


FSDP = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from puna import LlamaConfig, LlamaForCausalLM

rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config)
ids = torch.arange(4, 12).view(1, 8)
expected = model(ids, labels=ids).loss.item()
mesh = init_device_mesh("cpu", (2,))
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
for _ in range(2):
    out = model(ids, labels=ids)
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(out.loss.item())
assert abs(losses[0] - expected) < 1e-5, (losses, expected)
assert losses[1] < losses[0]
assert type(out).__name__ == "CausalLMOutputWithPast"
assert model.model.layers[0].mlp.up_proj.weight.to_local().shape[0] == 24
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_fully_shard_trains_on_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", FSDP]
    workers = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    for worker in workers:
        output = worker.communicate(timeout=120)[0]
        assert worker.returncode == 0, output[-2000:]
