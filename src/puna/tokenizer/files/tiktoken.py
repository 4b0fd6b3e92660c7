"""Llama 3's `tokenizer.model`: lines of a base64 token and its rank, as the `tiktoken` package reads them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from puna.errors import TokenizerError
from puna.tokenizer.byte_alphabet import CHARACTER_TO_BYTE
from puna.tokenizer.files.byte_level import build, pre_tokenizer, spell

RESERVED = 256
"""Special tokens of Llama 3 and 3.1, right after the ranks (llama_models/llama3/tokenizer.py)."""

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"


def read_tiktoken(path: Path) -> Tokenizer:
    """Reads the ranks and builds the tokenizer, special tokens included.

    Raises:
        TokenizerError: a line is no base64 token with its rank, or the ranks are not 0, 1, 2, ...
    """
    tokens = _tokens(path.read_bytes(), str(path))
    vocab = {spell(token): rank for rank, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or not all(spell(bytes((byte,))) in vocab for byte in range(256)):
        raise TokenizerError(f"{path}: a token appears twice, or a byte has none; download the file again")
    special = special_tokens()
    merges = _merges(vocab)
    vocab |= {token: len(tokens) + index for index, token in enumerate(special)}
    added = [AddedToken(token, normalized=False, special=True) for token in special]
    return build(vocab, merges, pre_tokenizer("llama-bpe"), added)


def write_tiktoken(vocab: Mapping[str, int], added: Mapping[int, str]) -> bytes | None:
    """A vocabulary as ranks, the inverse of `read_tiktoken`; None where Llama 3's own code would read another one.

    Args:
        vocab: token, in the alphabet of `byte_alphabet`, to id; added tokens may be among them.
        added: id to text of the tokens beside the ranks.
    """
    base = {index: token for token, index in vocab.items() if index not in added}
    special = special_tokens()
    if sorted(base) != list(range(len(base))):
        return None
    if any(not 0 <= index - len(base) < RESERVED for index in added):
        return None
    if len(added) != RESERVED or [added[len(base) + at] for at in (0, 1, 6, 7, 9)] != [
        special[at] for at in (0, 1, 6, 7, 9)
    ]:
        return None
    lines = []
    for rank in range(len(base)):
        try:
            token = bytes(CHARACTER_TO_BYTE[character] for character in base[rank])
        except KeyError:
            return None
        lines.append(base64.b64encode(token) + b" %d\n" % rank)
    return b"".join(lines)


def special_tokens() -> list[str]:
    """The 256 special tokens in the order of their ids, under the names of Hugging Face's Llama 3.1 files."""
    named = {
        0: BOS,
        1: EOS,
        4: PAD,
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
    }
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(RESERVED))
    return [named[index] if index in named else next(reserved) for index in range(RESERVED)]


def _tokens(data: bytes, name: str) -> list[bytes]:
    """The tokens in the order of their ranks."""
    tokens: list[bytes] = []
    for number, line in enumerate(data.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
        except (IndexError, ValueError, binascii.Error) as exc:
            raise TokenizerError(f"{name}: line {number} is no base64 token with its rank; download it again") from exc
        if rank != len(tokens) or not token:
            raise TokenizerError(f"{name}: line {number} has rank {rank}; {len(tokens)} comes next, download it again")
        tokens.append(token)
    return tokens


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of its rank, then of the pair's.

    tiktoken merges the pair whose result has the lowest rank, whichever pair it is.
    """
    merges: list[tuple[str, str]] = []
    for token in vocab:  # in the order of the ranks
        pairs = [(token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in vocab and token[at:] in vocab]
        if len(pairs) > 1:
            pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += pairs
    return merges
