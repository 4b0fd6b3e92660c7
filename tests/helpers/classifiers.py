"""A checkpoint for sequence classification with the decoder and tokenizer of another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy


def write_classifier(model: Path, folder: Path, labels: int, **settings: Any) -> Path:
    """Writes a `LlamaForSequenceClassification` with the decoder of a language model; returns its folder.

    Args:
        model: a folder with one safetensors file.
        labels: number of labels, whose head is random; 0 writes a `LlamaModel` without a head.
        settings: keys of config.json.
    """
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    del tensors["lm_head.weight"]
    if labels:
        width = tensors["model.norm.weight"].shape[0]
        tensors["score.weight"] = np.random.default_rng(3).normal(0, 0.3, (labels, width)).astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification" if labels else "LlamaModel"]
    if labels:
        config |= {"id2label": {str(index): f"kind {index}" for index in range(labels)}}
        config |= {"label2id": {f"kind {index}": index for index in range(labels)}}
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder
