"""`torch.compile` and `torch.export` capture forward as one graph, and forward never waits for the device."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from puna.errors import RequestError
from puna.model import CausalLMOutputWithPast, KVCache, LlamaForCausalLM, LlamaForSequenceClassification
from puna.model.step import Trace
from tests.helpers.configurations import DYNAMIC, LLAMA3, config_of, longrope
from tests.helpers.reference_models import distance

ROPES: dict[str, Any] = {"default": None, "llama3": LLAMA3, "dynamic": DYNAMIC, "longrope": longrope(12, original=8)}

INPUTS: dict[str, tuple[str, ...]] = {
    "ids": ("input_ids",),
    "mask": ("input_ids", "attention_mask"),
    "mask and positions": ("input_ids", "attention_mask", "position_ids"),
    "cache": ("input_ids", "past_key_values"),
    "all": ("input_ids", "attention_mask", "position_ids", "past_key_values"),
}


def new_model(rope: str, layers: int = 1, **fields: Any) -> LlamaForCausalLM:
    """Returns a small model. Capturing a graph takes time for each layer: one test of each kind has two."""
    torch.manual_seed(0)
    length = 8 if rope in ("dynamic", "longrope") else 64
    sizes = {"num_hidden_layers": layers, "num_key_value_heads": 2}
    config = config_of(rope_scaling=ROPES[rope], max_position_embeddings=length, **sizes, **fields)
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def arguments(model: LlamaForCausalLM, names: tuple[str, ...], rows: int, tokens: int) -> dict[str, Any]:
    """Returns inputs of a batch whose first text has padding on the left; a cache holds 4 tokens for each new one."""
    past = 4 * tokens if "past_key_values" in names else 0
    ids = torch.randint(3, 67, (rows, past + tokens))
    mask = torch.ones(rows, past + tokens, dtype=torch.long)
    if "attention_mask" in names:
        mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0) if "position_ids" in names else None
    first = None if positions is None else positions[:, :past]
    cache = model(ids[:, :past], mask[:, :past], first).past_key_values if past else None
    every = {
        "input_ids": ids[:, past:],
        "attention_mask": mask,
        "position_ids": None if positions is None else positions[:, past:],
        "past_key_values": cache,
    }
    return {name: every[name] for name in names}


def assert_equal_outputs(result: CausalLMOutputWithPast, expected: CausalLMOutputWithPast) -> None:
    assert isinstance(result, CausalLMOutputWithPast)
    assert isinstance(result.past_key_values, KVCache)
    leaves, expected_leaves = _pytree.tree_leaves(result), _pytree.tree_leaves(expected)
    for tensor, expected_tensor in zip(leaves, expected_leaves, strict=True):
        assert distance(tensor.float(), expected_tensor.float()) <= 1e-5


@pytest.mark.parametrize(
    ("rope", "every"),
    [
        pytest.param("default", INPUTS, id="default"),
        pytest.param("llama3", ("ids", "all"), id="llama3"),
        pytest.param("dynamic", INPUTS, id="dynamic"),
        pytest.param("longrope", ("ids", "all"), id="longrope"),
        *(pytest.param(rope, INPUTS, id=f"{rope}-every", marks=pytest.mark.soak) for rope in ("llama3", "longrope")),
    ],
)
@torch.no_grad()
def test_a_compiled_model_is_one_graph_for_all_inputs(rope: str, every: Iterable[str]) -> None:
    model = new_model(rope, layers=2 if rope == "default" else 1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for name in every:
        inputs = arguments(model, INPUTS[name], 2, 5)
        assert_equal_outputs(compiled(**inputs), model(**inputs))


@pytest.mark.parametrize("eager", [False, True])
@torch.no_grad()
def test_a_compiled_model_returns_all_outputs(eager: bool) -> None:
    model = new_model("dynamic", attn_implementation="eager" if eager else "sdpa")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = arguments(model, INPUTS["mask and positions"], 2, 12)
    inputs |= {"output_attentions": True, "output_hidden_states": True}
    assert_equal_outputs(compiled(**inputs), model(**inputs))
    allowed = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    allowed[1, :, :, 0] = False  # the first query of this text may attend to no key
    ids = inputs["input_ids"]
    assert_equal_outputs(compiled(ids, attention_mask=allowed), model(ids, attention_mask=allowed))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_model_trains(recompute: bool) -> None:
    model = new_model("llama3", layers=2).train()
    model.gradient_checkpointing = recompute
    inputs = arguments(model, INPUTS["mask"], 2, 9)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model(**inputs, labels=labels).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs, labels=labels).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected[name]) <= 1e-5, name


@pytest.mark.parametrize(
    ("rope", "name"),
    [
        *(("default", name) for name in INPUTS),
        ("dynamic", "ids"),
        ("dynamic", "all"),
        *(pytest.param("dynamic", name, marks=pytest.mark.soak) for name in INPUTS if name not in ("ids", "all")),
    ],
)
@torch.no_grad()
def test_an_exported_model_accepts_other_sizes_of_batch_and_text(rope: str, name: str) -> None:
    model = new_model(rope, layers=2 if name == "all" else 1)
    inputs = arguments(model, INPUTS[name], 2, 5)
    shapes = torch.export.ShapesCollection()
    for tensor in _pytree.tree_leaves(inputs):
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC, 1 if tensor.dim() == 2 else 2: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    exported = program.module()
    for rows, tokens in ((2, 5), (3, 9)):
        inputs = arguments(model, INPUTS[name], rows, tokens)
        assert_equal_outputs(exported(**inputs), model(**inputs))


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_forward_reads_no_values(name: str) -> None:
    """Tensors on the meta device have no values: reading one, as a wait for a device does, is an error."""
    model = new_model("default")
    inputs = arguments(model, INPUTS[name], 2, 5)
    expected = [tensor.shape for tensor in _pytree.tree_leaves(model(**inputs))]
    inputs = _pytree.tree_map(lambda tensor: tensor.to("meta"), inputs)
    model.to("meta")
    assert [tensor.shape for tensor in _pytree.tree_leaves(model(**inputs))] == expected
    labels = inputs["input_ids"]
    assert model(**inputs, labels=labels).loss.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        labels.max().item()


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
@torch.no_grad()
def test_forward_with_frequencies_by_length_reads_no_values_unless_positions_are_given(rope: str) -> None:
    model = new_model(rope).to("meta")
    ids = torch.zeros(2, 12, dtype=torch.long, device="meta")
    cache = model(ids).past_key_values
    step = torch.zeros(2, 1, dtype=torch.long, device="meta")
    assert model(step, past_key_values=cache).logits.shape == (2, 1, 67)
    assert model(step, position_ids=step, past_key_values=cache).logits.shape == (2, 1, 67)  # one token is one run


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_traced_model_can_be_saved_and_accepts_other_lengths(padded: bool, attentions: bool) -> None:
    model = new_model("default", torchscript=True, use_cache=False, output_attentions=attentions)
    masks = [torch.ones(2, length, dtype=torch.long) for length in (9, 13)]
    if padded:
        for mask in masks:
            mask[0, :3] = 0
    ids = [torch.randint(3, 67, mask.shape) for mask in masks]
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, (ids[0], masks[0])), buffer)
    buffer.seek(0)
    traced = torch.jit.load(buffer)
    for one, mask in zip(ids, masks, strict=True):
        result, expected = traced(one, mask), model(one, mask)
        assert len(result) == len(expected) == 1 + attentions
        assert distance(result[0], expected[0], mask.bool()) <= 1e-5


@torch.no_grad()
def test_a_classifier_is_one_graph() -> None:
    model = LlamaForSequenceClassification(config_of(num_labels=3)).eval()
    ids, mask = torch.randint(3, 67, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[0, 4:] = 0
    labels = torch.tensor([0, 2])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    result, expected = compiled(ids, mask, labels=labels), model(ids, mask, labels=labels)
    assert distance(result.logits, expected.logits) <= 1e-5
    assert distance(result.loss, expected.loss) <= 1e-5


@torch.no_grad()
def test_the_parts_of_forward_compute_its_outputs() -> None:
    model = new_model("default", layers=2)
    inputs = arguments(model, INPUTS["all"], 2, 5)
    cache: KVCache = inputs["past_key_values"]
    x = model.model.embed(inputs["input_ids"])
    trace = Trace(states=True, cache=True)
    step = model.model.step(x, cache, inputs["attention_mask"], inputs["position_ids"], trace)
    base = model.model.hidden(x, step, cache)
    expected = model(**inputs, output_hidden_states=True)
    assert torch.equal(model.logits(base.last_hidden_state), expected.logits)
    states: tuple[Tensor, ...] = base.hidden_states or ()
    assert all(torch.equal(a, b) for a, b in zip(states, expected.hidden_states, strict=True))
    assert base.past_key_values is not None
    assert base.past_key_values.length == 25
    assert base.attentions is None
    with pytest.raises(RequestError, match="input_ids holds 67"):
        model.model.embed(torch.tensor([[67]]))
