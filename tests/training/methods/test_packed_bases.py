"""Adapters over packed matrices (QLoRA) have the gradients of the same adapters over the dequantised model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from puna import convert, train
from puna.adapters import open_adapter, save_adapter
from puna.adapters.torch_apply import apply_adapter
from puna.model import LlamaForCausalLM
from puna.model.quantized import PackedMatrix, modules
from puna.training.forward.choice import forward_for
from puna.training.forward.fused import matrices, products
from puna.training.forward.reference import ReferenceForward
from puna.training.methods.table import METHODS
from puna.training.settings import TrainingSettings
from tests.golden.files import LAYOUTS, TOKENIZER
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import distance
from tests.training.forward.batches import attached, error, new_batch
from tests.training.forward.batches import gradients as forward_gradients

IDS = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": "qlora", "rank": 4},
    "dora": {"method": "qlora", "rank": 4, "dora": True},
    "lm_head": {"method": "qlora", "rank": 4, "targets": ("lm_head", "up_proj")},
    "saved": {"method": "qlora", "rank": 4, "modules_to_save": ("lm_head", "embed_tokens", "norm")},
    "tokens": {"method": "qlora", "rank": 4, "trainable_tokens": (5, 9)},
    "ia3": {"method": "ia3", "quantized": True},
    "prompt": {"method": "prompt", "quantized": True},
    "prefix": {"method": "prefix", "quantized": True},
    "bottleneck": {"method": "bottleneck", "quantized": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GGUF file in each format. K formats need rows of 256 values."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = config_of(vocab_size=512, hidden_size=256, intermediate_size=256, head_dim=64, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder / "float")
    shutil.copy(TOKENIZER, folder / "float" / "tokenizer.model")
    for name in ("q4_0", "q4_1", "q8_0", "q4_K"):
        convert(folder / "float", folder / f"{name}.gguf", quantize=name)
    return folder


def gradients(model: Any, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
    """Returns the gradients after a first step, which makes all of LoRA's gradients differ from zero."""
    trainable = METHODS[settings["method"]].attach(model, None, TrainingSettings(**settings))
    for last in (False, True):
        model(IDS, labels=IDS).loss.backward()
        if last:
            break
        with torch.no_grad():
            for parameter in trainable.parameters.values():
                parameter -= 0.1 * parameter.grad / (parameter.grad.norm() + 1e-9)
                parameter.grad = None
        trainable.after_step()
    return {name: parameter.grad for name, parameter in trainable.parameters.items()}, trainable


def compare(path: Path, settings: dict[str, Any], dtype: str = "float32") -> tuple[Any, Any]:
    packed = LlamaForCausalLM.from_pretrained(path, keep_quantized=True, dtype=dtype)
    plain = LlamaForCausalLM.from_pretrained(path, dtype=dtype)
    blocks = {name: buffer.clone() for name, buffer in packed.named_buffers()}
    expected, _ = gradients(plain, {**settings, "method": settings["method"].removeprefix("q"), "quantized": False})
    result, trainable = gradients(packed, settings)
    assert result.keys() == expected.keys()
    for name, gradient in result.items():
        assert distance(gradient, expected[name]) <= 1e-6, name
        assert float(gradient.abs().max()) > 0
    assert all(torch.equal(buffer, blocks[name]) for name, buffer in packed.named_buffers())
    return packed, trainable


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q8_0", "q4_K"])
def test_gradients_equal_those_of_the_dequantised_model(files, form):
    compare(files / f"{form}.gguf", CASES["lora"])


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_every_method_equal_those_of_the_dequantised_model(files, name, tmp_path):
    model, trainable = compare(files / "q4_1.gguf", CASES[name])
    with torch.no_grad():
        expected = model(IDS).logits
    save_adapter(trainable.adapter(), tmp_path)
    trainable.release()
    assert sum(isinstance(module, PackedMatrix) for module in model.modules()) == 7 * 2 + 1
    if name in ("saved", "tokens"):  # apply_adapter replaces rows only of float matrices
        model = LlamaForCausalLM.from_pretrained(files / "q4_1.gguf")
    with torch.no_grad(), apply_adapter(model, open_adapter(tmp_path, model.config)):
        assert distance(model(IDS).logits, expected) <= 1e-6


def test_gradients_in_bfloat16_equal_those_of_the_dequantised_model(files):
    compare(files / "q4_0.gguf", CASES["lora"], "bfloat16")


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint as a packed GGUF file."""
    path = tmp_path_factory.mktemp("golden") / "model.gguf"
    convert(LAYOUTS["hf"], path, quantize="q4_0")
    return path


def test_fused_gradients_over_packed_matrices_equal_those_of_the_dequantised_model_in_float64(golden):
    batch, settings = new_batch(7, 30, 2), {"rank": 4, "dropout": 0.1}
    packed = LlamaForCausalLM.from_pretrained(golden, keep_quantized=True, dtype="float32")
    assert any(isinstance(module, PackedMatrix) for module in packed.modules())
    plain = LlamaForCausalLM.from_pretrained(golden, dtype="float32").double()
    exact_loss, exact = forward_gradients(ReferenceForward(attached(plain, "lora", **settings)), batch)
    loss, values = forward_gradients(forward_for(attached(packed, "qlora", **settings), "fused"), batch)
    assert loss == pytest.approx(exact_loss, rel=1e-5)
    assert error(values, exact) < 1e-5


def test_small_panels_of_matrices_do_not_change_the_gradients(golden, monkeypatch):
    """Products in float32 read matrices and the head in panels."""
    monkeypatch.setattr(products, "has_bf16_products", lambda: False)
    batch, results = new_batch(7, 30, 2), []
    for values in (1 << 22, 3 * 64):
        monkeypatch.setattr(matrices, "PANEL_VALUES", values)
        model = LlamaForCausalLM.from_pretrained(golden, keep_quantized=True, dtype="bfloat16")
        results.append(forward_gradients(forward_for(attached(model, "qlora", rank=4), "fused"), batch))
    plain = LlamaForCausalLM.from_pretrained(golden, dtype="bfloat16").double()
    exact_loss, exact = forward_gradients(ReferenceForward(attached(plain, "lora", rank=4)), batch)
    (loss, whole), (other, panels) = results
    assert abs(other - exact_loss) < 2 * abs(loss - exact_loss) + 1e-3 * exact_loss  # bfloat16 rounds activations
    assert error(panels, exact) < 1.2 * error(whole, exact) < 0.06


def test_a_run_of_qlora_has_the_losses_of_lora_over_the_dequantised_model(golden, tmp_path):
    rows = [{"prompt": "Count:", "completion": f" one two {word}"} for word in ("three", "four")]
    losses = []
    for method in ("qlora", "lora"):
        options = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "dtype": "float32", "threads": 1}
        result = train(golden, rows, method=method, output=tmp_path / method, **options)
        assert "forward pass: fused" in result.notes
        losses.append(result.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][-1] < losses[0][0]


def test_an_evaluation_changes_no_bit_of_the_gradients(files):
    model = LlamaForCausalLM.from_pretrained(files / "q4_0.gguf", keep_quantized=True, dtype="bfloat16")
    before, trainable = gradients(model, CASES["lora"])
    before = {name: gradient.clone() for name, gradient in before.items()}
    with torch.no_grad():
        model(IDS)
    for parameter in trainable.parameters.values():
        parameter.grad = None
    model(IDS, labels=IDS).loss.backward()
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in trainable.parameters.items())


def test_no_dequantised_matrix_is_kept(files):
    """After a forward pass, the graph keeps the packed matrices instead of copies."""
    model = LlamaForCausalLM.from_pretrained(files / "q4_0.gguf", keep_quantized=True)
    METHODS["qlora"].attach(model, None, TrainingSettings(method="qlora", rank=4))
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(IDS, labels=IDS)
    assert any(tensor.dtype == torch.uint8 for tensor in saved)
    assert not [
        tensor.shape for tensor in saved if tensor.is_floating_point() and tensor.dim() > 1 and min(tensor.shape) >= 256
    ]


def test_norms_of_packed_rows_are_computed_in_parts(files, monkeypatch):
    from puna.training.methods.attach import row_norms

    model = LlamaForCausalLM.from_pretrained(files / "q4_K.gguf", keep_quantized=True)
    layer = model.model.layers[0].mlp.up_proj
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 256, generator=random), torch.randn(256, 4, generator=random)
    expected = (layer.packed.dequantize().double() + 0.5 * b.double() @ a.double()).norm(dim=1)
    monkeypatch.setattr(modules, "PART_VALUES", 3 * 256)
    assert distance(row_norms(layer, a, b, 0.5), expected.float()) <= 1e-6
