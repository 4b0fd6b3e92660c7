"""Unusual folders give the logits and ids of an ordinary folder; other folders are refused with the actual reason."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from puna import LLM, load_tokenizer
from puna.checkpoint import inspect_checkpoint, open_checkpoint
from puna.errors import PunaError
from tests.checkpoint.odd_folders import UNUSUAL
from tests.checkpoint.refused_folders import REFUSED
from tests.golden.files import read_expected
from tests.helpers.changed_folders import EditedFolder

EXPECTED = read_expected()
TEXTS = {example["text"]: example["ids"] for example in EXPECTED["ids"]}
IDS = EXPECTED["ids"][0]["ids"] * 8
"""112 tokens: more than the original context of some RoPE settings."""

TOLERANCE = 3e-6
"""Limit of the difference from transformers, relative to the largest logit (see tests/golden)."""


@functools.cache
def ordinary_logits(config: str, folder: Path) -> NDArray[np.float32]:
    """Returns the logits of the golden checkpoint with changed keys of config.json, given as JSON."""
    odd = EditedFolder(json.loads(config))
    return LLM(odd.write(folder), "native", threads=1).logits(IDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd")


@pytest.mark.parametrize("name", UNUSUAL)
def test_logits_and_ids_equal_those_of_the_ordinary_model(name: str, folder: Path) -> None:
    odd = UNUSUAL[name]
    path = odd.write(folder / name)
    logits = LLM(path, "native", threads=1).logits(IDS)
    config = json.dumps(odd.equivalent)
    assert np.array_equal(logits[:, :512], ordinary_logits(config, folder / f"{len(config)} ordinary"))
    tokenizer = load_tokenizer(path)
    for text, ids in TEXTS.items():
        assert tokenizer.encode(text) == ids
    report = inspect_checkpoint(path)
    assert not report.errors
    assert any(odd.note in note for note in report.notes) if odd.note else not _unexpected(report.notes)


def _unexpected(notes: list[str]) -> list[str]:
    """Returns the notes that an ordinary folder does not have."""
    return [note for note in notes if "chat template" not in note]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, odd in UNUSUAL.items() if odd.reference])
def test_logits_and_ids_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = UNUSUAL[name].write(tmp_path / "model")
    logits = LLM(path, "native", threads=1).logits(IDS)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        expected = model(torch.tensor([IDS])).logits[0].numpy()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()
    for text, ids in TEXTS.items():
        assert tokenizer(text)["input_ids"] == ids


@pytest.mark.parametrize("name", REFUSED)
def test_the_error_for_a_refused_folder_gives_the_actual_reason(name: str, tmp_path: Path) -> None:
    path = REFUSED[name].write(tmp_path / "model")
    with pytest.raises(PunaError, match=REFUSED[name].error):
        open_checkpoint(path)
    report = inspect_checkpoint(path)
    assert report.errors
    assert "Traceback" not in str(report.to_dict())
