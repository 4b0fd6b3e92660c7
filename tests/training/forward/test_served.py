"""`forward="served"`: the log-probabilities of training have the bits of those of serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import puna
from puna.adapters import save_adapter
from puna.errors import ConfigError
from puna.model import LlamaForCausalLM
from puna.training.batch import Batch
from puna.training.forward.choice import forward_for
from puna.training.forward.fused.model import FusedForward
from puna.training.forward.served.model import ServedForward
from puna.training.forward.served.pieces import pieces
from puna.training.methods.base import Trainable
from puna.training.methods.table import METHODS
from puna.training.settings import TrainingSettings
from tests.golden.files import HELD_OUT, LAYOUTS
from tests.helpers.configurations import config_of
from tests.training.forward.batches import attached, error, gradients, new_batch, new_model

FORMATS = ["bf16", "f32", "q8_0", "q4_0", "q4_1"]
LENGTHS = (7, 66, 2, 30, 129)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The golden checkpoint as GGUF files of several formats."""
    folder = tmp_path_factory.mktemp("models")
    for name in FORMATS:
        puna.convert(LAYOUTS["hf"], folder / f"{name}.gguf", quantize=name)
    return {name: folder / f"{name}.gguf" for name in FORMATS}


def loaded(path: Path, method: str = "lora", dtype: str = "bfloat16", **options: Any) -> Trainable:
    model = LlamaForCausalLM.from_pretrained(path, dtype=dtype, keep_quantized=METHODS[method].keep_quantized)
    return METHODS[method].attach(model, None, TrainingSettings(model=str(path), method=method, **options))


def documents(*lengths: int) -> Batch:
    """Random tokens; all that have a predecessor are supervised."""
    batch = new_batch(*lengths)
    batch.weights[:] = 1
    batch.weights[np.cumsum((0, *lengths[:-1]))] = 0
    return batch


def trained(model: Path, output: Path, **options: Any) -> Any:
    """Trains on lines of the golden checkpoint's held-out text, with the served forward pass."""
    rows = [{"text": line} for line in HELD_OUT.read_text().splitlines() if line.strip()][:6]
    settings = {"learning_rate": 1e-2, "batch_size": 3, "steps": 3, "seed": 1, "threads": 1, **options}
    return puna.train(model, rows, output=output, forward="served", **settings)


def served(llm: puna.LLM, batch: Batch, adapter: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities that `LLM` returns for each document alone: those of its prompt, and -nll."""
    prompts, losses = [], []
    for ids in np.split(batch.ids, np.cumsum(batch.lengths)[:-1]):
        completion = llm.generate(ids.tolist(), max_tokens=1, prompt_logprobs=0, adapter=adapter)
        prompts += [item.logprob for item in completion.prompt_logprobs[1:]]
        losses.append(-llm.nll(ids.tolist(), adapter=adapter))
    return np.array(prompts), np.concatenate(losses)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_log_probabilities_of_an_adapter_in_training_have_the_bits_of_those_of_llm(name, models, tmp_path):
    options = {"rank": 3, "rslora": True, "dora": name == "q4_0", "method": "qlora" if name == "q8_0" else "lora"}
    result = trained(models[name], tmp_path / "tuned", **options)
    assert (
        any(note.split(";")[0] == "forward pass: served" for note in result.notes)
        and result.losses[-1] < result.losses[0]
    )
    llm, batch = puna.LLM(models[name], adapters={"tuned": result.path}), documents(*LENGTHS)
    forward = ServedForward(loaded(models[name], adapter=str(result.path), **options))
    prompts, losses = served(llm, batch, "tuned")
    assert np.array_equal(forward.log_probabilities(batch), prompts)
    assert np.array_equal(forward.log_probabilities(batch, exact=True), losses)
    assert forward.losses(batch, 0.5).item() == pytest.approx(-0.5 * prompts.sum(), rel=1e-7)
    assert not np.array_equal(served(llm, batch, None)[0], prompts)


@pytest.mark.slow
def test_log_probabilities_over_k_quants_are_those_of_llm(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(config_of(vocab_size=512, num_hidden_layers=2, **sizes))
    model.save_pretrained(tmp_path / "float")
    puna.AutoTokenizer.from_pretrained(LAYOUTS["hf"]).save_pretrained(tmp_path / "float")
    puna.convert(tmp_path / "float", tmp_path / "q4_k.gguf", quantize="q4_K")
    trainable = changed(loaded(tmp_path / "q4_k.gguf", "qlora", rank=4))
    assert any(name.endswith("q4_K") for name, _ in trainable.model.named_buffers())
    save_adapter(trainable.adapter(), tmp_path / "tuned")
    llm, batch = puna.LLM(tmp_path / "q4_k.gguf", adapters={"tuned": tmp_path / "tuned"}), documents(40, 9)
    assert np.array_equal(ServedForward(trainable).log_probabilities(batch), served(llm, batch, "tuned")[0])


def test_log_probabilities_of_generated_tokens_are_those_of_training(models):
    llm = puna.LLM(models["q4_0"])
    prompt = [1, 40, 41]
    completion = llm.generate(prompt, max_tokens=12, temperature=1.0, seed=3, logprobs=0)
    ids = np.array([*prompt, *(item.token for item in completion.logprobs)])
    batch = documents(len(ids))
    batch.ids[:] = ids
    forward = ServedForward(loaded(models["q4_0"], rank=2))
    expected = [item.logprob for item in completion.logprobs]
    assert np.array_equal(forward.log_probabilities(batch)[len(prompt) - 1 :], expected)


@pytest.mark.parametrize("tokens", [5, 64, 1000])
def test_division_into_native_passes_changes_no_bit(tokens, models, monkeypatch):
    batch = documents(*LENGTHS, 1, 3)
    forward = ServedForward(loaded(models["bf16"], rank=2))
    expected = forward.log_probabilities(batch)
    monkeypatch.setattr("puna.training.forward.served.model.PIECE_TOKENS", tokens)
    assert np.array_equal(forward.log_probabilities(batch), expected)
    loss, values = gradients(forward, batch)
    monkeypatch.setattr("puna.training.forward.served.model.PIECE_TOKENS", 512)
    other_loss, others = gradients(forward, batch)
    assert loss == pytest.approx(other_loss, rel=1e-7)
    assert all(torch.equal(values[name], others[name]) for name in values)


def test_pieces_cover_the_tokens_in_order_within_their_limits():
    lengths = (3, 130, 1, 64, 7, 9)
    ids = np.arange(sum(lengths))
    parts = list(pieces(ids, lengths, 40, 3, 0))
    assert np.array_equal(np.concatenate([chunk.tokens for part in parts for chunk in part.chunks]), ids)
    for part in parts:
        assert sum(len(chunk.tokens) for chunk in part.chunks) == part.end - part.first <= 40
        used = [page for chunk in part.chunks for page in chunk.pages]
        assert len(set(used)) == len(used) and max(used) < 3
        assert [int(chunk.tokens[0]) for chunk in part.chunks] == list(part.starts)
    positions = [chunk.start for part in parts for chunk in part.chunks]
    assert positions == [0, 0, 40, 80, 120, 0, 0, 40, 0, 0]


def test_gradients_in_float32_are_those_of_the_fused_forward_pass(models):
    batch = new_batch(*LENGTHS)
    exact_loss, exact = gradients(FusedForward(changed(loaded(models["f32"], dtype="float32", rank=4))), batch, 0.5)
    loss, values = gradients(ServedForward(changed(loaded(models["f32"], dtype="float32", rank=4))), batch, 0.5)
    assert loss == pytest.approx(exact_loss, rel=1e-5)
    assert error(values, exact) < 1e-5


@pytest.mark.parametrize("name", ["bf16", "q8_0", "q4_0"])
def test_straight_through_gradients_have_the_direction_of_those_in_float32(name, models):
    batch = new_batch(*LENGTHS)
    _, exact = gradients(FusedForward(changed(loaded(models[name], dtype="float32", rank=4))), batch)
    _, values = gradients(ServedForward(changed(loaded(models[name], dtype="float32", rank=4))), batch)
    total, others = (torch.cat([item.flatten() for item in group.values()]) for group in (values, exact))
    assert torch.nn.functional.cosine_similarity(total, others, dim=0) > 0.999


def test_gradients_are_the_slopes_of_the_loss(models):
    batch, trainable = documents(20, 33), changed(loaded(models["f32"], dtype="float32", rank=4))
    forward = ServedForward(trainable)
    _, values = gradients(forward, batch)
    direction = {name: item / torch.cat([v.flatten() for v in values.values()]).norm() for name, item in values.items()}

    def loss_at(step):
        with torch.no_grad():
            for name, parameter in trainable.parameters.items():
                parameter += step * direction[name]
        trainable.after_step()
        return -float(forward.log_probabilities(batch, exact=True).sum())

    step = 2e-3
    slope = (loss_at(step) - loss_at(-2 * step)) / (2 * step)
    assert slope == pytest.approx(sum(float((values[n] * direction[n]).sum()) for n in values), rel=1e-2)


@pytest.mark.slow
def test_held_out_loss_of_a_run_is_that_of_llm_with_the_saved_adapter(models, tmp_path):
    rows = [{"text": line} for line in HELD_OUT.read_text().splitlines() if line.strip()][6:9]
    result = trained(models["q4_0"], tmp_path / "tuned", rank=4, eval_data=rows)
    llm = puna.LLM(models["q4_0"], adapters={"tuned": result.path})
    tokenizer = puna.AutoTokenizer.from_pretrained(models["q4_0"])
    ids = [[*tokenizer.encode(row["text"]), tokenizer.eos_token_id] for row in rows]
    losses = np.concatenate([llm.nll(document, adapter="tuned") for document in ids])
    assert result.metrics["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_hidden_states_are_those_of_llm(models):
    batch = documents(9, 70)
    states = ServedForward(loaded(models["bf16"], rank=2)).hidden(batch)
    embeddings = puna.LLM(models["bf16"]).embed([batch.ids[:9].tolist(), batch.ids[9:].tolist()])
    assert np.array_equal(states.detach()[[8, 78]].numpy(), embeddings)
    assert states.requires_grad


@pytest.mark.slow
def test_a_classifier_trains_with_the_served_forward_pass(models, tmp_path):
    rows = [{"text": text, "label": text} for text in ("yes", "no")]
    options = {"steps": 4, "learning_rate": 1e-2, "dtype": "float32", "threads": 1, "eval_share": 0, "batch_size": 2}
    runs = [
        puna.train(models["f32"], rows, "classify", output=tmp_path / name, forward=name, **options)
        for name in ("served", "fused")
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-3) and runs[0].losses[-1] < runs[0].losses[0]


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("full", {}, "training of the model's own weights"),
        ("prompt", {"virtual_tokens": 2}, "soft prompts"),
        ("prefix", {"virtual_tokens": 2}, "prefixes"),
        ("bottleneck", {}, "bottleneck adapters"),
        ("lora", {"dropout": 0.1}, "dropout"),
        ("lora", {"trainable_tokens": (3,)}, "rows of single tokens"),
        ("lora", {"modules_to_save": ("lm_head",)}, "training of the model's own weights"),
    ],
)
def test_methods_that_the_native_runtime_cannot_serve_live_are_refused(method, options, reason, models):
    trainable = loaded(models["bf16"], method, **options)
    with pytest.raises(ConfigError, match=f"'served', which does not implement {reason}; set forward to 'auto'"):
        forward_for(trainable, "served")


def test_noise_new_models_and_documents_over_the_context_are_refused(models):
    with pytest.raises(ConfigError, match="does not implement the noise of neftune_alpha"):
        forward_for(loaded(models["bf16"], rank=2), "served", noise=5.0)
    with pytest.raises(ConfigError, match="does not implement a model that is not in a file"):
        forward_for(attached(new_model(), "lora", rank=2), "served")
    forward = ServedForward(loaded(models["bf16"], rank=2))
    limit = forward.trainable.model.config.max_position_embeddings
    with pytest.raises(ConfigError, match=f"has {limit + 1} tokens, but the context of the model is {limit}"):
        forward.log_probabilities(documents(limit + 1))


def changed(trainable: Trainable) -> Trainable:
    """Parameters that differ from their initial values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    trainable.after_step()
    return trainable
