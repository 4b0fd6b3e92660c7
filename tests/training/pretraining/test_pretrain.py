"""The task pretrain, from a text file to a model that is generated from, converted and compared with transformers."""

from __future__ import annotations

import json
import random

import pytest
import torch

from puna import LLM, convert, train
from puna.errors import ConfigError, DataError
from puna.tokenizer import load_tokenizer
from puna.training.batch import order
from puna.training.pretraining.new_model import new_config, new_model
from puna.training.settings import TrainingSettings
from puna.training.tokenizer.train import train_tokenizer

WORDS = ["llama", "grassland", "wind", "condor", "the", "a", "of", "river", "sees", "green"]
TINY = {"depth": 2, "width": 32, "heads": 4, "max_length": 16, "batch_size": 4}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    choose = random.Random(4)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(choose.choices(WORDS, k=6)) + "." for _ in range(300)) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([text], folder, "char")
    return folder


@pytest.fixture(scope="module")
def result(text, tokenizer, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    return train(None, text, "pretrain", tokenizer=tokenizer, output=output, steps=60, eval_share=0.1, **TINY)


def test_the_loss_falls_from_that_of_equal_probabilities(result):
    assert abs(result.losses[0] - 3.2) < 0.2  # log(25 characters)
    assert result.losses[-1] < 2.6 and result.metrics["loss"] < 2.6


def test_the_held_out_windows_are_the_last(result, text, tokenizer):
    """The metric is the loss that transformers computes for the last tenth of the windows."""
    transformers = pytest.importorskip("transformers")
    peer = transformers.LlamaForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(result.path)(text.read_text())["input_ids"]
    count = len(ids) // 16  # EOS follows the text
    size = max(1, round(0.1 * count))
    starts = range((count - size) * 16, count * 16, 16)
    rows = torch.tensor([[*ids, peer.config.eos_token_id][start : start + 17] for start in starts])
    with torch.no_grad():
        expected = float(peer(rows, labels=rows).loss)
    assert abs(result.metrics["loss"] - expected) < 1e-5
    assert abs(result.metrics["perplexity"] / torch.tensor(expected).exp().item() - 1) < 1e-4


def test_the_result_generates_natively_and_converts(result, tmp_path):
    with LLM(result.path) as llm:
        text = llm.generate("the ", max_tokens=8).text
    convert(result.path, tmp_path / "model.gguf")
    with LLM(tmp_path / "model.gguf") as llm:
        assert llm.generate("the ", max_tokens=8).text == text
    assert len(text) == 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fifty_losses_are_those_of_transformers(text, tokenizer, tmp_path, optimizer):
    """The same initial weights, windows and order; the peer is transformers with PyTorch's optimizers."""
    transformers = pytest.importorskip("transformers")
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has no Muon")
    options = {**TINY, "tokenizer": tokenizer, "warmup": 0, "schedule": "constant", "seed": 3, "optimizer": optimizer}
    loaded = load_tokenizer(tokenizer)
    new_model(new_config(TrainingSettings.of(options), loaded), 0.02, seed=3).save_pretrained(tmp_path / "first")
    result = train(None, text, "pretrain", output=tmp_path / "run", steps=50, learning_rate=2e-3, **options)
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float32).train()
    ids = torch.tensor([*loaded(text.read_text())["input_ids"], loaded.eos_token_id])
    losses, count = [], (len(ids) - 1) // 16
    indices = order(3, 0, count)
    optimizers = _peer_optimizers(peer, optimizer)
    for step in range(50):
        rows = torch.stack([ids[index * 16 : index * 16 + 17] for index in indices[step * 4 : step * 4 + 4]])
        loss = peer(rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for item in optimizers:
            item.step()
            item.zero_grad()
        losses.append(float(loss.detach()))
    tolerance = 1e-4 if optimizer == "adamw" else 2e-2  # PyTorch's Muon orthogonalizes in bfloat16
    assert max(abs(one - other) for one, other in zip(result.losses, losses, strict=True)) < tolerance
    assert losses[-1] < losses[0] - 0.5


def _peer_optimizers(peer, name):
    adamw = {"lr": 2e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    if name == "adamw":
        return [torch.optim.AdamW(peer.parameters(), **adamw)]
    named = dict(peer.named_parameters())
    matrices = [item for key, item in named.items() if item.dim() == 2 and ".layers." in key]
    others = [item for key, item in named.items() if item.dim() == 1 or ".layers." not in key]
    muon = torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, **adamw)]


def test_a_model_continues_from_its_weights(result, text, tmp_path):
    again = train(result.path, text, "pretrain", output=tmp_path, steps=1, **{k: TINY[k] for k in ("max_length",)})
    assert again.losses[0] < 2.6


def test_tokens_are_shared_in_a_folder(text, tokenizer, tmp_path):
    options = {**TINY, "tokenizer": tokenizer, "token_folder": tmp_path / "tokens", "steps": 1}
    train(None, text, "pretrain", output=tmp_path / "one", **options)
    before = (tmp_path / "tokens" / "tokens-00000.bin").stat()
    train(None, text, "pretrain", output=tmp_path / "two", **options)
    after = (tmp_path / "tokens" / "tokens-00000.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert not (tmp_path / "one" / "tokens").exists()


def test_mistakes_are_explained(text, tokenizer, result, tmp_path):
    with pytest.raises(ConfigError, match="a new model needs a tokenizer"):
        train(None, text, "pretrain", output=tmp_path / "a", steps=1)
    with pytest.raises(ConfigError, match="model and depth are both set"):
        train(result.path, text, "pretrain", output=tmp_path / "b", steps=1, depth=2, max_length=16)
    with pytest.raises(DataError, match="give paths of text files"):
        train(None, [{"text": "a"}], "pretrain", output=tmp_path / "c", steps=1, tokenizer=tokenizer)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"hidden_size": 30, "num_attention_heads": 4}))
    with pytest.raises(ConfigError):
        train(None, text, "pretrain", output=tmp_path / "d", steps=1, tokenizer=tokenizer, from_config=config)
