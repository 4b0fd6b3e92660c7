"""A SentencePiece model as a pipeline of `tokenizers`, the way transformers 4.34.1 converts LLaMA's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram

from puna.errors import TokenizerError
from puna.tokenizer.sentencepiece.engine import open_model, read_model
from puna.tokenizer.sentencepiece.proto import BPE as BPE_MODEL
from puna.tokenizer.sentencepiece.proto import UNIGRAM, ModelSpec, PieceType, read_pieces


def convert_file(vocab_file: str | Path) -> Tokenizer:
    """Converts a tokenizer.model.

    Raises:
        TokenizerError: it is no SentencePiece model, or neither of type BPE nor Unigram.
    """
    return convert_model(read_model(Path(vocab_file)), str(vocab_file))


def convert_model(model: bytes, name: str) -> Tokenizer:
    """Converts the bytes of a SentencePiece model; `name` is for the error."""
    sp, spec = open_model(model, name)
    if spec.model_type not in (UNIGRAM, BPE_MODEL):
        raise TokenizerError(f"{name}: SentencePiece model type {spec.model_type}; LLaMA's are BPE (2) or Unigram (1)")
    every = list(range(sp.get_piece_size()))
    pieces: list[str] = sp.id_to_piece(every)
    scores: list[float] = sp.get_score(every)
    engine: Any
    if spec.model_type == UNIGRAM:
        engine = Unigram(list(zip(pieces, scores, strict=True)), sp.unk_id(), byte_fallback=True)
    else:
        vocab = {piece: index for index, piece in enumerate(pieces)}
        unk = pieces[sp.unk_id()]
        engine = BPE(vocab, _merges(pieces, scores, vocab), unk_token=unk, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(engine)
    tokenizer.add_special_tokens(
        [AddedToken(pieces[i], normalized=False, special=True) for i in every if sp.is_control(i) or sp.is_unknown(i)]
    )
    whole = _whole_pieces(model)
    tokenizer.normalizer, tokenizer.decoder = _edges(spec, whole)
    # After the normaliser is set: these are looked for in what it makes of the text, as SentencePiece does.
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in whole])
    return tokenizer


def _whole_pieces(model: bytes) -> list[str]:
    """User-defined pieces, which SentencePiece cuts out of a text whatever the merges; Meta's vocabularies have none.

    A piece with a space never occurs: the text has U+2581 there by then.
    """
    pieces, _, types = read_pieces(model)
    return [
        piece
        for piece, kind in zip(pieces, types, strict=True)
        if kind == PieceType.USER_DEFINED and piece and " " not in piece
    ]


def _edges(spec: ModelSpec, whole: list[str]) -> tuple[Any, Any]:
    """The normaliser and the decoder: spaces as U+2581, one in front as the model says.

    The pieces `whole` must stay as they are when they are normalised themselves; so a text that is nothing but one of
    them gets no space in front, the only one for which SentencePiece has another id more.
    """
    normalizer: list[Any] = [normalizers.Replace(" ", "▁")]
    decoder: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        if whole:
            but = "|".join(map(re.escape, whole))
            normalizer.append(normalizers.Replace(Regex(rf"\A(?!(?:{but})\z)"), "▁"))
        else:
            normalizer.insert(0, normalizers.Prepend("▁"))
        decoder.append(decoders.Strip(" ", 1, 0))
    return normalizers.Sequence(normalizer), decoders.Sequence(decoder)


def _merges(pieces: list[str], scores: list[float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best-scored piece first, then by the ids of the pair.

    SentencePiece merges the pair whose result scores best, whichever pair it is.
    """
    merges: list[tuple[float, list[tuple[str, str]]]] = []
    for piece, score in zip(pieces, scores, strict=True):
        splits = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        if pairs:
            merges.append((score, sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))))
    merges.sort(key=lambda item: item[0], reverse=True)
    return [pair for _, pairs in merges for pair in pairs]
