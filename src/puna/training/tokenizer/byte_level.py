"""Byte-level BPE with Llama 3's pre-tokenizer and special tokens, trained by the library `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from puna.errors import TokenizerError
from puna.tokenizer.arguments import Arguments
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.files.byte_level import BOS, EOS, PAD, build, pipeline_step, pre_tokenizer, special_tokens
from puna.tokenizer.files.recipes import Recipe

if TYPE_CHECKING:
    from puna.training.tokenizer.train import TokenizerTraining

_RULES = "llama-bpe"
"""The name of Llama 3's pre-tokenizer in GGUF files."""


def train(blocks: Iterator[str], settings: TokenizerTraining) -> LlamaTokenizerFast:
    """Trains a byte-level vocabulary; its special tokens follow the others, as in Llama 3.

    Raises:
        TokenizerError: the text is too small for the vocabulary, or the vocabulary is too small for the bytes.
    """
    special = special_tokens()[: settings.special_tokens]
    size = settings.size or 0
    if size < 256 + len(special):
        raise TokenizerError(
            f"vocab_size is {size}; 256 bytes and {len(special)} special tokens need at least {256 + len(special)}"
        )
    vocab, merges = _train(blocks, size - len(special))
    if len(vocab) + len(special) < size:
        limit = len(vocab) + len(special)
        raise TokenizerError(
            f"vocab_size is {size}, but this text has material for {limit} tokens only; use at most {limit}, or give "
            "more text"
        )
    vocab |= {token: len(vocab) + index for index, token in enumerate(special)}
    added = [AddedToken(token, normalized=False, special=True) for token in special]
    pipeline = build(vocab, merges, pre_tokenizer(_RULES), added)
    arguments = Arguments(unk_token=None, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    return LlamaTokenizerFast.from_recipe(Recipe(arguments, pipeline=pipeline, literal=True, add_bos=True))


def _train(blocks: Iterator[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns at most `size` tokens with their ids, and their merges in order."""
    pipeline = Tokenizer(BPE())
    pipeline.pre_tokenizer = pipeline_step(pre_tokenizer(_RULES))
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    pipeline.train_from_iterator(blocks, trainer)
    model = json.loads(pipeline.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]
