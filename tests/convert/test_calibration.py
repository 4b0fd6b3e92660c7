"""`--calibrate` lowers quantisation errors weighted by the squares of the inputs, and runs after the plan is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna import LlamaConfig, convert, load_tokenizer
from puna.backend import Chunk, consecutive_pages
from puna.checkpoint import open_checkpoint
from puna.errors import CheckpointError, RequestError, StorageError
from puna.native import NativeBackend
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder
from tests.helpers.vocabularies import train_sentencepiece

TEXT = "The llama lives in the high grassland. " * 200


@pytest.fixture(params=[False, True], ids=["head", "tied"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model in which the norms make some inputs a hundred times as large as others."""
    folder = tmp_path / "model"
    config = tiny_config(
        vocab_size=420, hidden_size=256, intermediate_size=512, num_attention_heads=16, num_key_value_heads=4,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    tensors = {name: t * 0.05 for name, t in tiny_tensors(config).items()}
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name][::16] = 5.0
    write_folder(folder, config, tensors)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    (tmp_path / "text.txt").write_text(TEXT)
    return folder


def squares(model: Path) -> dict[str, Any]:
    """Returns, for each matrix, the sum of squares of each of its inputs over the tokens of the text."""
    checkpoint = open_checkpoint(model)
    ids = load_tokenizer(model).encode(TEXT)[:120]
    backend = NativeBackend(checkpoint.config, checkpoint.tensors)
    with backend.observing() as totals:
        backend.forward([Chunk(consecutive_pages(len(ids)), np.asarray(ids, np.int64), 0, len(ids))])
        return totals()


def test_calibration_lowers_the_weighted_errors(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "plain.gguf", quantize="q3_K")
    convert(model, tmp_path / "calibrated.gguf", quantize="q3_K", calibrate=tmp_path / "text.txt")
    source, plain, calibrated = (
        open_checkpoint(path).tensors for path in (model, tmp_path / "plain.gguf", tmp_path / "calibrated.gguf")
    )
    tied = LlamaConfig.from_pretrained(model).tie_word_embeddings
    ratios = {}
    for name, weights in squares(model).items():
        stored_name = "model.embed_tokens.weight" if tied and name == "lm_head.weight" else name
        expected = source[stored_name].to_float32()
        errors = [
            (((tensors[stored_name].to_float32() - expected) ** 2) * weights).sum() for tensors in (plain, calibrated)
        ]
        ratios[name] = errors[1] / errors[0]
    assert len(ratios) == 15 and max(ratios.values()) < 1.0, ratios
    assert np.median(list(ratios.values())) < 0.8, ratios


def test_nothing_is_measured_before_the_plan(model: Path, tmp_path: Path) -> None:
    """Errors are raised before the plan is reported. The plan includes the memory for the measurement that follows."""
    events: list[Any] = []
    options: dict[str, Any] = {
        "calibrate": tmp_path / "text.txt",
        "calibrating": events.append,
        "on_plan": events.append,
    }
    with pytest.raises(CheckpointError, match="format 'q9' is unknown"):
        convert(model, tmp_path / "m.gguf", quantize="q9", **options)
    with pytest.raises(StorageError, match="exists already"):
        convert(model, tmp_path / "text.txt", quantize="q3_K", **options)
    assert events == []
    convert(model, tmp_path / "m.gguf", quantize="q3_K", **options)
    assert events[0].memory > 0 and events[1] == 0.0 and len(events) > 2


@pytest.mark.slow
def test_only_the_beginning_of_a_long_text_is_read(model: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(model).encode(TEXT * 40)
    assert len(ids) > 32768
    (tmp_path / "long.txt").write_text(TEXT * 40)
    (tmp_path / "longer.txt").write_text(TEXT * 80)
    outcome = convert(model, tmp_path / "m.gguf", quantize="q3_K", calibrate=tmp_path / "long.txt")
    assert f"calibration reads only the first 32768 tokens of {tmp_path / 'long.txt'}" in outcome.notes
    convert(model, tmp_path / "n.gguf", quantize="q3_K", calibrate=tmp_path / "longer.txt")
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "n.gguf").read_bytes()


def test_unusable_texts_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("llama")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 2000)
    for name, message in (
        ("short.txt", "give a text of 128 or more"),
        ("latin.txt", "is not UTF-8"),
        ("none.txt", "cannot be read"),
    ):
        with pytest.raises(RequestError, match=message):
            convert(model, tmp_path / "x.gguf", quantize="q3_K", calibrate=tmp_path / name)
    with pytest.raises(RequestError, match="set quantize to a mix or block format"):
        convert(model, tmp_path / "x.gguf", to="gguf", calibrate=tmp_path / "text.txt")
