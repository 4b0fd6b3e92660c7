"""`from_pretrained(keep_quantized=True)`: packed matrices compute what float matrices with the same values compute."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from puna import convert
from puna.errors import RequestError
from puna.formats.blocks import FORMATS
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification
from puna.model.quantized import PackedMatrix, QuantEmbedding, QuantLinear, modules
from puna.model.quantized.unpack import UNPACK
from tests.checkpoint.test_packed import PACKINGS, write_packed
from tests.golden.files import TOKENIZER
from tests.helpers.blocks import extreme_blocks
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import distance

IDS = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["q4_0", "q8_0", "q4_K", "tied"])
def path(request: Any, tmp_path_factory: Any) -> Path:
    """A GGUF file; "tied" has no separate head. K formats need rows of 256 values."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tied = request.param == "tied"
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2}
    config = config_of(**sizes, tie_word_embeddings=tied)
    LlamaForCausalLM(config).save_pretrained(folder / "float")
    shutil.copy(TOKENIZER, folder / "float" / "tokenizer.model")
    convert(folder / "float", folder / "model.gguf", quantize="q4_K" if tied else request.param)
    return folder / "model.gguf"


@pytest.fixture
def model(path: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(path, keep_quantized=True)


@pytest.mark.parametrize("name", UNPACK)
def test_values_are_bit_identical_to_those_of_numpy(name: str) -> None:
    form = FORMATS[name]
    random = np.random.default_rng(form.ggml_id).integers(0, 256, (500, form.bytes), np.uint8)
    for blocks in (random, extreme_blocks(form, 60)):
        expected = form.decode(blocks.reshape(-1))
        values = UNPACK[name](torch.from_numpy(blocks)).reshape(-1).numpy()
        np.testing.assert_array_equal(values, expected)  # also compares infinities and NaN
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(values[finite].view(np.uint32), expected[finite].view(np.uint32))


@torch.no_grad()
def test_logits_equal_those_of_the_dequantised_model(path: Path, model: LlamaForCausalLM) -> None:
    expected = LlamaForCausalLM.from_pretrained(path)
    assert sum(isinstance(module, QuantLinear) for module in model.modules()) == 7 * 2 + 1
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert torch.equal(model.generate(IDS[:1], max_new_tokens=5), expected.generate(IDS[:1], max_new_tokens=5))
    half = LlamaForCausalLM.from_pretrained(path, keep_quantized=True, dtype="bfloat16")
    expected = LlamaForCausalLM.from_pretrained(path, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert torch.equal(half(IDS).logits, expected(IDS).logits)
    assert torch.equal(model.to(torch.bfloat16)(IDS).logits, expected(IDS).logits)


@torch.no_grad()
def test_large_matrices_are_dequantised_in_parts(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = model.model.layers[0].mlp.up_proj
    expected = matrix.weight
    monkeypatch.setattr(modules, "PART_VALUES", 3 * 256)
    assert list(matrix.packed.parts())[-2:] == [(507, 510), (510, 512)]
    assert torch.equal(matrix.weight, expected)
    x = torch.randn(5, 256)
    assert distance(matrix(x), x @ expected.T) <= 1e-5
    with torch.enable_grad():
        x.requires_grad_()
        matrix(x).square().sum().backward()
        assert distance(x.grad, 2 * (x @ expected.T) @ expected) <= 1e-5


def test_tensors_need_about_the_size_of_the_file(path: Path, model: LlamaForCausalLM) -> None:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert abs(size - path.stat().st_size) < 0.03 * size  # the file also has metadata
    assert model.num_parameters() == LlamaForCausalLM.from_pretrained(path).num_parameters()
    plain = LlamaForCausalLM.from_pretrained(path).num_parameters(exclude_embeddings=True)
    assert model.num_parameters(exclude_embeddings=True) == plain


class LowRank(nn.Module):
    """A linear layer with a low-rank change that can be trained."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        random = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(4, layer.in_features, generator=random))
        self.b = nn.Parameter(torch.randn(layer.out_features, 4, generator=random) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + x @ self.a.T @ self.b.T
        return out


def gradients(model: LlamaForCausalLM, recompute: bool) -> dict[str, Tensor]:
    """Adds low-rank adapters to the first layer; returns the gradients of their weights and of the RMSNorm weights."""
    attention = model.model.layers[0].self_attn
    attention.q_proj, attention.v_proj = LowRank(attention.q_proj), LowRank(attention.v_proj)
    model.train()
    model.gradient_checkpointing = recompute
    model(IDS, labels=IDS).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if name.endswith((".a", ".b", "norm.weight"))}


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_those_of_the_dequantised_model(path: Path, model: LlamaForCausalLM, recompute: bool) -> None:
    expected = gradients(LlamaForCausalLM.from_pretrained(path), recompute)
    result = gradients(model, recompute)
    assert len(result) == 4 + 5
    for name, gradient in result.items():
        assert gradient.abs().max() > 0
        assert distance(gradient, expected[name]) <= 1e-5, name


def test_no_dequantised_matrix_is_kept_for_the_backward_pass(model: LlamaForCausalLM) -> None:
    kept: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        layer(x).sum().backward()
    assert [tensor.dtype for tensor in kept] == [torch.uint8]
    assert kept[0].data_ptr() == layer.packed.blocks.data_ptr()


def test_a_state_dict_holds_blocks_under_the_name_of_their_format(path: Path, model: LlamaForCausalLM) -> None:
    state = copy.deepcopy(model.state_dict())
    packed = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.uint8}
    assert len(packed) == 7 * 2 + 2
    assert all(name.rpartition(".packed.")[2] in FORMATS for name in packed)
    assert {name for name in state if name not in packed} == {
        name for name in LlamaForCausalLM.from_pretrained(path).state_dict() if "norm" in name
    }
    logits = model(IDS).logits.detach()
    for tensor in packed.values():
        tensor.copy_(tensor.flip(0))
    model.load_state_dict(state)
    assert not torch.equal(model(IDS).logits, logits)
    with pytest.raises(RuntimeError, match=r"Missing key.*packed"):
        model.load_state_dict(LlamaForCausalLM.from_pretrained(path).state_dict())


def test_packed_matrices_are_saved_only_after_dequantize(path: Path, model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"(15|16) matrices.*dequantize\(\)"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(RequestError, match=r"packed.*dequantize\(\)"):
        model.resize_token_embeddings(100)
    expected = LlamaForCausalLM.from_pretrained(path)
    assert model.dequantize() is model
    assert not model.training
    assert not any(isinstance(module, PackedMatrix) for module in model.modules())
    assert list(model.state_dict()) == list(expected.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path / "model")(IDS).logits, expected(IDS).logits)


def test_changes_of_a_dequantised_copy_are_refused(model: LlamaForCausalLM) -> None:
    """Otherwise a program that merges an adapter into `layer.weight` would lose it without a message."""
    for layer in (model.lm_head, model.model.embed_tokens):
        assert layer.weight.dtype == torch.float32
        assert type(layer.weight + 1) is type(layer.weight.T) is Tensor
        changes: list[Callable[[Any], Any]] = [
            lambda layer: layer.weight.data.add_(1),
            lambda layer: setattr(layer.weight, "data", torch.zeros(512, 256)),
            lambda layer: layer.weight.add_(1),
            lambda layer: layer.weight.requires_grad_(),
            lambda layer: layer.weight.__iadd__(1),
            lambda layer: layer.weight.__setitem__(0, 1),
        ]
        for change in changes:
            with pytest.raises(RequestError, match=r"packed.*dequantize\(\)"):
                change(layer)
        with pytest.raises(AttributeError, match="weight"):
            layer.weight = torch.zeros(512, 256)


def test_a_tied_head_shares_the_blocks_and_stays_tied(model: LlamaForCausalLM) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, QuantEmbedding)
    assert isinstance(head, QuantLinear)
    for other in (model, copy.deepcopy(model), copy.deepcopy(model).to(torch.bfloat16)):
        shared = other.get_input_embeddings().packed is other.get_output_embeddings().packed
        assert shared == model.config.tie_word_embeddings


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch's own tracer
@torch.no_grad()
def test_a_packed_model_is_one_graph(model: LlamaForCausalLM) -> None:
    model.model.layers = model.model.layers[:1]  # a graph needs time for each layer
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert distance(compiled(IDS).logits, model(IDS).logits) <= 1e-6
    program = torch.export.export(model, (IDS,))
    assert distance(program.module()(IDS).logits, model(IDS).logits) <= 1e-6


def test_keep_quantized_does_not_change_how_float_files_load(tmp_path: Path) -> None:
    LlamaForCausalLM(config_of()).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, keep_quantized=True)
    assert all(torch.equal(a, b) for a, b in zip(
        model.parameters(), LlamaForCausalLM.from_pretrained(tmp_path).parameters(), strict=True
    ))  # fmt: skip


def test_a_head_that_the_file_lacks_is_a_float_head(path: Path) -> None:
    with pytest.warns(UserWarning, match="score"):
        classifier = LlamaForSequenceClassification.from_pretrained(path, keep_quantized=True, num_labels=3)
    classifier.score.weight.requires_grad_()
    classifier(IDS, labels=torch.tensor([0, 2])).loss.backward()
    assert classifier.score.weight.grad.abs().max() > 0


def test_the_error_names_a_format_without_a_decoder() -> None:
    with pytest.raises(RequestError, match=r"model\.x\.weight is stored in iq2_xs; q4_0, .*Omit keep_quantized"):
        PackedMatrix("model.x.weight", "iq2_xs", torch.zeros(1, 74, dtype=torch.uint8), 256)


@pytest.mark.parametrize(("settings", "name"), PACKINGS)
@torch.no_grad()
def test_gptq_and_awq_matrices_stay_packed(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    write_packed(tmp_path, settings)
    model = LlamaForCausalLM.from_pretrained(tmp_path, keep_quantized=True)
    assert {module.format for module in model.modules() if isinstance(module, PackedMatrix)} == {name}
    assert torch.equal(model(IDS).logits, LlamaForCausalLM.from_pretrained(tmp_path)(IDS).logits)
