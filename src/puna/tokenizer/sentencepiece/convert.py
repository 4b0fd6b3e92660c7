"""Converts a SentencePiece model to a pipeline of `tokenizers`, as transformers 4.34.1 does for LLaMA."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram

from puna.errors import TokenizerError
from puna.files.tokenizer_json import library_errors
from puna.tokenizer.files.byte_level import merges_of
from puna.tokenizer.sentencepiece.engine import open_model
from puna.tokenizer.sentencepiece.proto import BPE as BPE_MODEL
from puna.tokenizer.sentencepiece.proto import UNIGRAM, ModelSpec, user_defined_pieces


@library_errors("the SentencePiece model cannot be converted")
def convert_model(model: bytes, name: str) -> Tokenizer:
    """Converts the bytes of a SentencePiece model.

    Args:
        name: name of the model, for the error message.

    Raises:
        TokenizerError: the bytes are not a SentencePiece model, or its type is neither BPE nor Unigram.
    """
    sp, spec = open_model(model, name)
    if spec.model_type not in (UNIGRAM, BPE_MODEL):
        raise TokenizerError(f"{name}: SentencePiece model type {spec.model_type}; expected BPE (2) or Unigram (1)")
    ids = list(range(sp.get_piece_size()))
    pieces: list[str] = sp.id_to_piece(ids)
    scores: list[float] = sp.get_score(ids)
    engine: Any
    if spec.model_type == UNIGRAM:
        engine = Unigram(list(zip(pieces, scores, strict=True)), sp.unk_id(), byte_fallback=True)
    else:
        vocab = {piece: index for index, piece in enumerate(pieces)}
        best_first = [pieces[index] for index in sorted(ids, key=lambda index: scores[index], reverse=True)]
        merges, unk = merges_of(best_first, vocab), pieces[sp.unk_id()]
        engine = BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(engine)
    tokenizer.add_special_tokens(
        [
            AddedToken(piece, normalized=False, special=True)
            for piece, control, unknown in zip(pieces, sp.is_control(ids), sp.is_unknown(ids), strict=True)
            if control or unknown
        ]
    )
    # Pieces with a space never match, because the spaces of the text have become U+2581.
    user_defined = [piece for piece in user_defined_pieces(model) if piece and " " not in piece]
    tokenizer.normalizer, tokenizer.decoder = _normalizer_and_decoder(spec, user_defined)
    # Add these after the normaliser is set. `tokenizers` then matches them in normalised text, like SentencePiece.
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in user_defined])
    return tokenizer


def _normalizer_and_decoder(spec: ModelSpec, user_defined: list[str]) -> tuple[Any, Any]:
    """Returns the normaliser and the decoder: spaces become U+2581, and a prefix space is added if the model has one.

    `tokenizers` normalises the user-defined pieces too, but they must not change. A text that is exactly one such piece
    therefore gets no prefix space. SentencePiece encodes a "▁" before the piece; this is the only known difference.
    """
    normalizer: list[Any] = [normalizers.Replace(" ", "▁")]
    decoder: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        if user_defined:
            pieces = "|".join(map(re.escape, user_defined))
            normalizer.append(normalizers.Replace(Regex(rf"\A(?!(?:{pieces})\z)"), "▁"))
        else:
            normalizer.insert(0, normalizers.Prepend("▁"))
        decoder.append(decoders.Strip(" ", 1, 0))
    return normalizers.Sequence(normalizer), decoders.Sequence(decoder)
