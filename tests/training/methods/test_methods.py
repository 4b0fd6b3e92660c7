"""Every method trains what it names and nothing else, on float, bfloat16 and packed models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from puna.adapters import open_adapter, save_adapter
from puna.adapters.torch_apply import apply_adapter
from puna.errors import ConfigError
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification
from puna.tokenizer import load_tokenizer
from puna.training.methods import lora
from puna.training.methods.base import Trainable
from puna.training.methods.table import METHODS
from puna.training.settings import TrainingSettings
from tests.golden.files import LAYOUTS
from tests.helpers.reference_models import distance

FLOAT = [name for name in METHODS if name != "qlora"]
ADAPTERS = [name for name in FLOAT if name != "full"]
IDS = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))


def golden(**arguments: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(LAYOUTS["hf"], **arguments)


def attach(model: Any, method: str, **settings: Any) -> Trainable:
    return METHODS[method].attach(model, None, TrainingSettings(method=method, **settings))


def train(model: Any, trainable: Trainable, steps: int = 3, rate: float = 1e-2) -> list[float]:
    optimizer = torch.optim.AdamW(trainable.parameters.values(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        trainable.after_step()
        losses.append(loss.item())
    return losses


def gradients(model: Any, trainable: Trainable) -> dict[str, Tensor]:
    for parameter in trainable.parameters.values():
        parameter.grad = None
    model(IDS, labels=IDS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in trainable.parameters.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FLOAT)
def test_trained_parameters_move_and_frozen_ones_do_not(name, dtype):
    model = golden(dtype=dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = model(IDS).logits
    trainable = attach(model, name)
    assert all(parameter.dtype == torch.float32 for parameter in trainable.parameters.values())
    initial = {key: value.detach().clone() for key, value in trainable.parameters.items()}
    losses = train(model, trainable)
    assert losses[-1] < losses[0]
    assert [key for key, value in trainable.parameters.items() if torch.equal(value, initial[key])] == []
    trainable.release()
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    if name == "full":
        assert all(not torch.equal(after[key], before[key]) for key in before)
    else:
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert torch.equal(model(IDS).logits, logits)


@pytest.mark.parametrize("name", FLOAT)
def test_an_evaluation_changes_no_bit_of_the_gradients(name):
    model = golden(dtype="bfloat16").train()
    trainable = attach(model, name, **({"dropout": 0.2} if name == "lora" else {}))
    train(model, trainable, 2)
    with trainable.dropping((7,)):
        before = gradients(model, trainable)
    model.eval()
    with torch.no_grad():
        model(IDS)
    with torch.inference_mode():
        model(IDS)
    model.train()
    with trainable.dropping((7,)):
        after = gradients(model, trainable)
    assert all(float(gradient.abs().max()) > 0 for gradient in before.values())
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_adapter_gives_the_logits_of_the_training(name, tmp_path):
    model = golden()
    trainable = attach(model, name)
    train(model, trainable)
    with torch.no_grad():
        expected = model(IDS).logits
        adapter = trainable.adapter()
        assert adapter.base == str(LAYOUTS["hf"])
        trainable.release()
        save_adapter(adapter, tmp_path)
        adapter = open_adapter(tmp_path, model.config)
        with apply_adapter(model, adapter):
            assert torch.equal(model(IDS).logits, expected)
        started = METHODS[name if name != "ptuning" else "prompt"].attach(model, None, TrainingSettings(), adapter)
        assert torch.equal(model(IDS).logits, expected)
        started.release()


def test_master_values_collect_changes_below_the_resolution_of_bfloat16():
    model = golden(dtype="bfloat16")
    trainable = attach(model, "full")
    name = "model.norm.weight"
    master, parameter = trainable.masters[name]
    assert parameter is model.model.norm.weight
    start, low = master.detach().clone(), parameter.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            master += start.abs() * 2**-10
        trainable.after_step()
    torch.testing.assert_close(master.detach(), start + 3 * start.abs() * 2**-10)
    assert torch.equal(parameter, master.bfloat16())
    assert not torch.equal(parameter, low)  # one such step alone is rounded away
    assert torch.equal((start + start.abs() * 2**-10).bfloat16(), low)


def test_gradients_of_master_values_add_up_over_micro_batches():
    model = golden(dtype="bfloat16")
    trainable = attach(model, "full")
    model(IDS[:1], labels=IDS[:1]).loss.backward()
    first = {name: parameter.grad.clone() for name, parameter in trainable.parameters.items()}
    model(IDS[1:], labels=IDS[1:]).loss.backward()
    both = {name: parameter.grad.clone() for name, parameter in trainable.parameters.items()}
    second = gradients_of(golden(dtype="bfloat16"), IDS[1:])
    assert all(torch.equal(both[name], first[name] + second[name]) for name in both)
    assert all(parameter.grad is None for parameter in model.parameters())


def gradients_of(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model(ids, labels=ids).loss.backward()
    return {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def test_full_training_of_the_last_layers_leaves_the_others():
    trainable = attach(golden(), "full", layers=1)
    starts = {name.split(".")[2] if ".layers." in name else name for name in trainable.parameters}
    assert starts == {"1", "model.norm.weight", "lm_head.weight"}


def test_settings_of_lora_determine_the_matrices_and_the_scales():
    trainable = attach(
        golden(), "lora", rank=4, alpha=6.0, rslora=True, layers=(0,), exclude=("k_proj",), dropout=0.5,
        rank_pattern={"mlp.*": 9}, alpha_pattern={"o_proj": 2.5},
    )  # fmt: skip
    names = {name.removeprefix("model.layers.0.").removesuffix(".weight") for name in trainable.low_rank}
    assert names == {
        "self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
    }  # fmt: skip
    scales = {name.split(".")[-2]: change.scale for name, change in trainable.low_rank.items()}
    expected = {"q_proj": 3, "v_proj": 3, "o_proj": 1.25, "gate_proj": 2, "up_proj": 2, "down_proj": 2}
    assert scales == pytest.approx(expected)
    assert {len(change.a) for name, change in trainable.low_rank.items() if ".mlp." in name} == {9}
    assert trainable.features == {"low_rank", "dropout"}
    change = trainable.low_rank["model.layers.0.self_attn.q_proj.weight"]
    assert change.a.abs().max().item() <= 1 / math.sqrt(64)
    assert change.a.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.15)


def test_initial_values_depend_only_on_the_seed():
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(values))
        trainable = attach(golden(), "lora", seed=seed)
        values.append(torch.cat([change.a.detach().flatten() for change in trainable.low_rank.values()]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_dropout_depends_only_on_the_seed_of_the_batch_and_the_layer():
    model = golden()
    trainable = attach(model, "lora", dropout=0.25)
    with torch.no_grad():
        for change in trainable.low_rank.values():
            change.b.normal_()
    plain = model(IDS).logits
    with trainable.dropping((3,)):
        first, again = model(IDS).logits, model(IDS).logits
        x = torch.ones(40, 300)
        masks = [trainable.dropout_mask(index, x, 0.25) for index in (0, 1)]
    with trainable.dropping((4,)):
        other = model(IDS).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)
    assert torch.equal(model(IDS).logits, plain)
    assert not torch.equal(masks[0], masks[1])
    assert masks[0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(masks[0].mean()) == pytest.approx(1, abs=0.02)


def test_recomputed_activations_have_the_same_dropout():
    model = golden().train()
    trainable = attach(model, "lora", dropout=0.3)
    train(model, trainable, 2)
    with trainable.dropping((11,)):
        expected = gradients(model, trainable)
        model.gradient_checkpointing_enable()
        result = gradients(model, trainable)
    assert all(torch.equal(expected[name], result[name]) for name in expected)


def test_a_soft_prompt_begins_with_the_text_the_vocabulary_or_the_scale_of_embeddings():
    model, tokenizer = golden(), load_tokenizer(LAYOUTS["hf"])
    embeddings = model.model.embed_tokens.weight.detach()
    ids = tokenizer("The sea was calm.")["input_ids"]
    settings = {"method": "prompt", "init_text": "The sea was calm."}
    short = METHODS["prompt"].attach(model, tokenizer, TrainingSettings(virtual_tokens=3, **settings))
    assert torch.equal(short.prompt, embeddings[ids[:3]])
    long = METHODS["prompt"].attach(model, tokenizer, TrainingSettings(virtual_tokens=2 * len(ids) + 1, **settings))
    assert torch.equal(long.prompt, embeddings[[*ids, *ids, ids[0]]])
    sampled = attach(model, "prompt", virtual_tokens=40).prompt
    assert (sampled[:, None] == embeddings).all(dim=2).any(dim=1).all()
    assert len(sampled.unique(dim=0)) > 20
    random = attach(model, "prompt", virtual_tokens=200, initialization="random").prompt.detach()
    assert float(random.std()) == pytest.approx(float(embeddings.std()), rel=0.1)


def test_a_prefix_begins_with_the_keys_and_values_of_the_text():
    transformers = pytest.importorskip("transformers")
    model, tokenizer = golden(), load_tokenizer(LAYOUTS["hf"])
    settings = TrainingSettings(method="prefix", init_text="A boy and his dog went to the sea.", virtual_tokens=6)
    prefix = METHODS["prefix"].attach(model, tokenizer, settings).prefix
    reference = transformers.LlamaForCausalLM.from_pretrained(LAYOUTS["hf"])
    ids = torch.tensor([tokenizer(settings.init_text)["input_ids"][:6]])
    with torch.no_grad():
        cache = reference(ids, use_cache=True).past_key_values
    expected = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    assert distance(prefix, expected) <= 1e-5
    assert not attach(model, "prefix", initialization="zero").prefix.any()
    random = attach(model, "prefix", initialization="random", virtual_tokens=60).prefix.detach()
    assert float(random[1, 1].std()) == pytest.approx(
        attach(model, "prefix", virtual_tokens=60).prefix[1, 1].std().item(), rel=0.1
    )


def test_a_text_continues_a_prefix_made_of_its_beginning():
    """A prefix of a text's first tokens gives the logits of the complete text."""
    model = golden()
    tokenizer = load_tokenizer(LAYOUTS["hf"])
    text = "A boy and his dog went to the sea."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    expected = model(ids).logits[:, 5:]
    METHODS["prefix"].attach(model, tokenizer, TrainingSettings(method="prefix", init_text=text, virtual_tokens=5))
    assert distance(model(ids[:, 5:]).logits, expected) <= 1e-5


def test_a_bottleneck_computes_its_formula(tmp_path):
    model = golden()
    trainable = attach(model, "bottleneck", bottleneck_size=8, bottleneck_after="both", activation="gelu", layers=1)
    assert {name.split(".", 2)[2] for name in trainable.bottlenecks} == {
        "1.self_attn.o_proj.weight",
        "1.mlp.down_proj.weight",
    }
    train(model, trainable)
    layer = model.model.layers[1].mlp.down_proj
    x = torch.randn(5, 172, generator=torch.Generator().manual_seed(2))
    parts = trainable.adapter().bottlenecks["model.layers.1.mlp.down_proj.weight"]
    out = x.double().numpy() @ layer.weight.detach().double().numpy().T
    inner = out @ parts.down.astype(float).T + parts.down_bias
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    expected = out + inner @ parts.up.astype(float).T + parts.up_bias
    assert np.abs(layer(x).detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected - out).max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*initialised at random")
def test_a_classification_head_trains_in_float32_over_a_bfloat16_model(tmp_path):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification.from_pretrained(LAYOUTS["hf"], num_labels=3, dtype="bfloat16")
    head = model.score.weight
    trainable = attach(model, "lora")
    assert trainable.features == {"low_rank"}
    out = model(IDS, labels=torch.tensor([0, 2]))
    assert out.logits.dtype == torch.float32
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters.values())
    with torch.no_grad():
        trainable.parameters["score.weight"] += 1
    save_adapter(trainable.adapter(), tmp_path)
    stored = open_adapter(tmp_path, model.config).replaced["score.weight"]
    assert torch.equal(torch.from_numpy(stored.to_float32()), trainable.parameters["score.weight"])
    trainable.release()
    assert model.score.weight is head


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("lora", {"targets": ("qq_proj",)}, "'qq_proj'.*q_proj"),
        ("lora", {"targets": ("embed_tokens",)}, "embed_tokens.*modules_to_save"),
        ("lora", {"layers": 3}, "layers is 3.*2 layers"),
        ("lora", {"layers": (2,)}, "layers is .2.*0 to 1"),
        ("lora", {"rank_pattern": {"x_proj": 3}}, "rank_pattern.*'x_proj'"),
        ("lora", {"targets": ("q_proj",), "exclude": ("q_proj",)}, "select no matrix"),
        ("lora", {"modules_to_save": ("heads",)}, "modules_to_save.*'heads'"),
        ("lora", {"trainable_tokens": (3, 512)}, "512.*0 to 511"),
        ("lora", {"virtual_tokens": 3}, "virtual_tokens is 3.*'lora' does not use"),
        ("full", {"rank": 3}, "rank is 3.*'full' does not use"),
        ("qlora", {}, "packed.*lora"),
        ("ia3", {"feedforward": ("up_proj",)}, "feedforward has 'up_proj'.*targets"),
        ("prompt", {"initialization": "text"}, "init_text is missing"),
        ("prompt", {"initialization": "zero"}, "zero.*vocabulary"),
        ("prompt", {"initialization": "random", "init_text": "x"}, "init_text has no use"),
        ("prompt", {"init_text": "x"}, "needs the tokenizer"),
    ],
)
def test_settings_that_do_not_fit_are_errors(method, settings, message):
    model = golden()
    with pytest.raises(ConfigError, match=message):
        attach(model, method, **settings)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_rank_that_needs_more_memory_than_is_available_is_an_error(monkeypatch):
    monkeypatch.setattr(lora, "available_memory", lambda: 1_000_000)
    attach(golden(), "lora", rank=2)
    with pytest.raises(ConfigError, match=r"rank 60,000 needs .* GB of memory .* 1.0 MB is available; lower rank"):
        attach(golden(), "lora", rank=60_000)


def test_an_adapter_of_another_kind_cannot_be_continued(tmp_path):
    save_adapter(attach(golden(), "ia3").adapter(), tmp_path)
    with pytest.raises(ConfigError, match=r"kind ia3.*'lora'"):
        attach(golden(), "lora", adapter=str(tmp_path))
