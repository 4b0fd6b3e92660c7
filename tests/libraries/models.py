"""A small model with a tokenizer, in memory and on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import puna
from tests.helpers.configurations import config_of
from tests.helpers.scripted_model import TOKENS, byte_tokenizer

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def new_model(kind: type[Any] = puna.LlamaForCausalLM, **fields: Any) -> Any:
    """Returns a model of a small configuration, with the vocabulary of the byte-level tokenizer."""
    torch.manual_seed(0)
    settings = {"num_hidden_layers": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
    config = config_of(vocab_size=len(TOKENS), pad_token_id=1, max_position_embeddings=256, **settings, **fields)
    return kind(config).eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model and its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    new_model().save_pretrained(path)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    tokenizer = puna.LlamaTokenizerFast.from_pretrained(path, bos_token=TOKENS[0], eos_token=TOKENS[1])
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder."""
    return puna.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    """Libraries do not contact the hub, and do not use several processes for a few rows."""
    names = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
