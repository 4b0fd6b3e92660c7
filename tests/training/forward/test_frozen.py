"""`activation_cache`: later epochs reuse the activations that enter the lowest layer that trains."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import puna
from puna.errors import ConfigError
from puna.native import training
from puna.training.forward.choice import forward_for
from puna.training.forward.fused.frozen import ActivationCache, lowest_trained
from puna.training.forward.fused.layer import FusedLayer
from puna.training.forward.fused.model import FusedForward
from tests.golden.files import HELD_OUT, LAYOUTS
from tests.training.forward.batches import attached, error, gradients, new_batch, new_model

LINES = [line[: 20 + 9 * index] for index, line in enumerate(HELD_OUT.read_text().splitlines()) if line.strip()][:7]
LENGTHS = (7, 30, 5, 66, 2)


def run(output: Path, **options: Any) -> Any:
    """Three epochs in which documents share forward passes with others each time, and held-out documents."""
    settings = {"epochs": 3, "batch_size": 3, "micro_batch_tokens": 60, "learning_rate": 1e-2, "threads": 1, **options}
    rows = [{"text": line} for line in LINES]
    return puna.train(LAYOUTS["hf"], rows, output=output, eval_share=0.3, eval_steps=2, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1, "rank": 4},
        {"layers": 1, "rank": 4, "dropout": 0.1, "dtype": "float32"},
        {"method": "full", "layers": 1},
    ],
    ids=["bfloat16", "float32", "full"],
)
def test_losses_and_results_with_a_cache_are_those_without(options, tmp_path):
    plain = run(tmp_path / "plain", **options)
    assert len(set(plain.losses)) == len(plain.losses) == 5
    cached, mapped = (run(tmp_path / size, activation_cache=size, **options) for size in ("1MB", "7KB"))
    assert any("first 1 layers are frozen and computed once for each document" in note for note in cached.notes)
    assert cached.losses == mapped.losses and cached.metrics == mapped.metrics
    assert cached.losses == pytest.approx(plain.losses, rel=1e-6 if "dtype" in options else 1e-3)
    if training.has_attention() and "dtype" not in options:  # the attention of PyTorch depends on neighbours
        assert cached.losses == plain.losses and cached.metrics == plain.metrics
        name = "model.safetensors" if "method" in options else "adapter_model.safetensors"
        assert (cached.path / name).read_bytes() == (plain.path / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_resumed_run_without_stored_activations_has_the_same_bits(dtype, tmp_path):
    options = {"layers": 1, "rank": 4, "dtype": dtype, "activation_cache": "1MB", "epochs": None}
    whole = run(tmp_path / "whole", steps=4, **options)
    run(tmp_path / "part", steps=4, callbacks=[lambda event: event.get("step") == 2], **options)
    resumed = run(tmp_path / "part", steps=4, resume=True, **options)
    assert resumed.losses == whole.losses


@pytest.mark.parametrize("limit", [1 << 20, 6000, 1])
def test_each_document_is_computed_once_in_the_frozen_layers(limit, tmp_path, monkeypatch):
    tokens: dict[int, int] = {}
    original = FusedLayer.__call__

    def counting(layer, x, *arguments):
        tokens[id(layer)] = tokens.get(id(layer), 0) + len(x)
        return original(layer, x, *arguments)

    monkeypatch.setattr(FusedLayer, "__call__", counting)
    forward = FusedForward(attached(new_model(), "lora", rank=2, layers=1), cache=ActivationCache(limit, tmp_path))
    first, later = new_batch(*LENGTHS), new_batch(*LENGTHS)
    gradients(forward, first)
    frozen, trained = tokens.values()
    for _ in range(2):
        gradients(forward, later)
    assert list(tokens.values()) == [frozen, 3 * trained] and trained >= sum(LENGTHS)
    assert not list(tmp_path.iterdir())  # the file has no name


def test_gradients_with_stored_activations_are_those_without(tmp_path):
    plain = FusedForward(attached(new_model(), "lora", rank=2, layers=(1,)))
    cached = FusedForward(attached(new_model(), "lora", rank=2, layers=(1,)), cache=ActivationCache(3000, tmp_path))
    for lengths in ((7, 30, 5), (30,), (5, 7, 30, 66)):
        batch = new_batch(*lengths)
        batch.ids[:] = np.concatenate([new_batch(length, seed=length).ids for length in lengths])
        loss, values = gradients(plain, batch)
        cached_loss, cached_values = gradients(cached, batch)
        assert cached_loss == pytest.approx(loss, rel=1e-6) and error(cached_values, values) < 1e-5


def test_documents_that_the_disk_cannot_hold_are_computed_again(tmp_path, monkeypatch):
    class Full:
        def seek(self, offset):
            return offset

        def close(self):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: Full())
    cached = FusedForward(attached(new_model(), "lora", rank=2, layers=1), cache=ActivationCache(3000, tmp_path))
    plain = FusedForward(attached(new_model(), "lora", rank=2, layers=1))
    batch = new_batch(*LENGTHS)
    for _ in range(2):
        assert gradients(cached, batch)[0] == pytest.approx(gradients(plain, batch)[0], rel=1e-6)


def test_lowest_trained_layer_follows_from_what_trains():
    assert lowest_trained(attached(new_model(), "lora", rank=2, layers=(1,))) == 1
    assert lowest_trained(attached(new_model(), "lora", rank=2, targets=("lm_head",))) == 2
    assert lowest_trained(attached(new_model(), "ia3", layers=(1,))) == 1
    assert lowest_trained(attached(new_model(), "lora", rank=2, layers=1, modules_to_save=("embed_tokens",))) == 0
    assert lowest_trained(attached(new_model(), "prompt", virtual_tokens=2, initialization="random")) == 0
    assert lowest_trained(attached(new_model(), "full")) == 0


@pytest.mark.parametrize(
    ("options", "implementation", "noise", "reason"),
    [
        ({}, "auto", 0.0, "the first layer or what precedes it trains; set layers"),
        ({"layers": 1}, "reference", 0.0, "forward is 'reference'"),
        ({"layers": 1}, "served", 0.0, "forward is 'served'"),
        ({"layers": 1}, "auto", 5.0, "neftune_alpha changes the embeddings in every epoch"),
        ({"layers": 1, "trainable_tokens": (3,)}, "auto", 0.0, "does not implement rows of single tokens"),
    ],
)
def test_runs_that_cannot_reuse_activations_are_refused(options, implementation, noise, reason):
    trainable = attached(new_model(), "lora", rank=2, **options)
    with pytest.raises(ConfigError, match=f"activation_cache is set, but .*{reason}"):
        forward_for(trainable, implementation, noise=noise, cache=ActivationCache(1000))


def test_size_of_the_cache_is_checked_before_the_data_are_read(tmp_path):
    with pytest.raises(ConfigError, match="activation_cache is 'much'; it must be a size such as 800MB"):
        puna.train(LAYOUTS["hf"], tmp_path / "missing.jsonl", output=tmp_path / "out", activation_cache="much")
