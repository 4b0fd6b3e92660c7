"""A model whose answers are known in advance, because each token determines the next one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from puna import LlamaConfig
from tests.helpers.random_weights import random_state
from tests.helpers.tiny_checkpoints import write_folder

SPECIAL = ("<|start|>", "<|end|>", "<|turn|>", "<|tool|>")
TOKENS = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))


def byte_tokenizer() -> Tokenizer:
    """Returns a byte-level tokenizer with four special tokens and 256 bytes, without merges."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(TOKENS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return tokenizer


def write_scripted_model(
    folder: Path, tokenizer: Tokenizer, follows: Mapping[int, int], settings: Mapping[str, Any] | None = None
) -> Path:
    """Writes the Hugging Face folder of a model, and returns its path.

    Args:
        follows: by token id, the id that the model generates after it; after all other ids, the model generates id 1,
            the end token.
        settings: keys of tokenizer_config.json in addition to the class, BOS (id 0) and EOS (id 1).
    """
    size = tokenizer.get_vocab_size()
    hidden = -(-size // 8) * 8
    config = LlamaConfig(
        vocab_size=size, hidden_size=hidden, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    state = {name: np.zeros_like(tensor) for name, tensor in random_state(config).items()}
    state["model.norm.weight"] += 1
    state["model.embed_tokens.weight"] += np.eye(size, hidden, dtype=np.float32)
    for index in range(size):
        state["lm_head.weight"][follows.get(index, 1), index] = 1
    write_folder(folder, config, state)
    tokenizer.save(str(folder / "tokenizer.json"))
    special_tokens = {"bos_token": tokenizer.id_to_token(0), "eos_token": tokenizer.id_to_token(1)}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens, **(settings or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder
