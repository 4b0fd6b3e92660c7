"""The name of the tokenizers' base class in transformers; only for compatibility."""

from __future__ import annotations

from puna.tokenizer.base import TokenizerBase

PreTrainedTokenizerBase = TokenizerBase
