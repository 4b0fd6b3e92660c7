"""The bytes that each token adds to a text, for grammars: they allow or forbid tokens by their bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

from puna.errors import TokenizerError
from puna.tokenizer.files.byte_level import CHARACTER_TO_BYTE
from puna.tokenizer.sentencepiece.engine import SPACE
from puna.tokenizer.slow import LlamaTokenizer

if TYPE_CHECKING:
    from puna.tokenizer.fast import LlamaTokenizerFast

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_PER_TOKEN_STEPS = frozenset({"Fuse", "ByteFallback", "Replace", "Strip", "Metaspace"})
"""Decoder steps of SentencePiece-style tokenizers.

With the settings that `_decoder_bytes` checks, a decoder of only these steps decodes each token independently of its
neighbours, except at the start and end of the text.
"""


def token_bytes(tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> list[bytes | None]:
    """Returns a list indexed by token id: the bytes that the token adds when it is not the first token of the text.

    At the beginning of a text, some tokenizers remove a space from the first token; see `StreamDecoder`. The bytes are
    None for special tokens, for the unknown token, for ids without a token, and for added tokens of a
    `LlamaTokenizer`, because their text depends on the tokens around them.

    Raises:
        TokenizerError: the decoder of a fast tokenizer may decode ordinary tokens differently next to others.
    """
    excluded = {*tokenizer.skipped_tokens(), *tokenizer.all_special_ids, tokenizer.unk_token_id}
    if isinstance(tokenizer, LlamaTokenizer):
        return _piece_bytes(tokenizer.sp_model, excluded | tokenizer.added_tokens_decoder.keys())
    spelling = _decoder_bytes(tokenizer)
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    # `get_vocab` returns the content of an added token, but `decode` uses the normalised content, as
    # `convert_ids_to_tokens` does.
    tokens |= {index: tokenizer.convert_ids_to_tokens(index) for index in tokenizer.added_tokens_decoder}
    result: list[bytes | None] = [None] * (max(tokens, default=-1) + 1)
    for index, token in tokens.items():
        if index not in excluded:
            result[index] = spelling(token) or None
    return result


def _piece_bytes(model: Any, excluded: Set[int | None]) -> list[bytes | None]:
    """Returns the bytes of the pieces of a `SentencePieceProcessor`."""
    ids = list(range(model.get_piece_size()))
    kinds = zip(model.id_to_piece(ids), model.is_byte(ids), model.is_control(ids), model.is_unknown(ids), strict=True)
    return [
        None
        if control or unknown or index in excluded
        else bytes([int(piece[3:5], 16)])
        if byte
        else piece.replace(SPACE, " ").encode() or None
        for index, (piece, byte, control, unknown) in enumerate(kinds)
    ]


def _sentencepiece_bytes(token: str) -> bytes:
    match = _BYTE.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(SPACE, " ").encode()


def _decoder_bytes(tokenizer: LlamaTokenizerFast) -> Callable[[str], bytes]:
    """Returns a function that maps a token to its bytes, as the tokenizer's decoder (of `tokenizers`) decodes it."""
    decoder = tokenizer.backend_tokenizer.decoder
    state: dict[str, Any] = {"type": "none"} if decoder is None else json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level_bytes
    replacements = {SPACE: " "} if "Metaspace" in kinds else {}
    for step in steps:
        if step["type"] == "Replace":
            replacements[step["pattern"].get("String")] = step["content"]
    # A step `Strip` may remove characters only at the beginning of the joined text.
    strips = [(kinds[:index], step) for index, step in enumerate(steps) if step["type"] == "Strip"]
    joined = all("Fuse" in before and step["stop"] == 0 for before, step in strips)
    if not (_PER_TOKEN_STEPS.issuperset(kinds) and joined and replacements == {SPACE: " "}):
        raise TokenizerError(
            f"grammars are not supported with this tokenizer: its decoder ({', '.join(kinds)}) may decode a token "
            "differently next to other tokens"
        )
    return _sentencepiece_bytes if "ByteFallback" in kinds else lambda token: token.replace(SPACE, " ").encode()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([CHARACTER_TO_BYTE[character] for character in token])
    except KeyError:  # characters outside the byte alphabet: an added token, which is plain text
        return token.encode()
