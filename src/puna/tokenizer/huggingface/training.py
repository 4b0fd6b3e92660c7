"""Only for compatibility: methods of transformers' fast tokenizers that change or train a pipeline of `tokenizers`."""

# ruff: noqa: D102  # base.py documents the members of FastTokenizer

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import tokenizers
from tokenizers import Tokenizer, pre_tokenizers, trainers

from puna.errors import TokenizerError
from puna.tokenizer.arguments import check_training
from puna.tokenizer.special import ADDITIONAL, NAMES, AddedToken, TokenLike, as_added_token

_TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
    "WordPiece": trainers.WordPieceTrainer,
}


class FastTokenizer(Protocol):
    """The members of `LlamaTokenizerFast` that this module uses."""

    _tokenizer: Tokenizer
    _named: dict[str, AddedToken]
    literal: bool
    padding_side: str
    truncation_side: str

    def _new_arguments(self) -> dict[str, Any]: ...
    @property
    def additional_special_tokens(self) -> list[str] | None: ...
    @property
    def pad_token(self) -> str | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def pad_token_type_id(self) -> int: ...


T = TypeVar("T", bound=FastTokenizer)


def train_new_from_iterator(
    self: T,
    text_iterator: Iterable[str] | Iterable[list[str]],
    vocab_size: int,
    length: int | None = None,
    new_special_tokens: Sequence[TokenLike] | None = None,
    special_tokens_map: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> T:
    """Trains a tokenizer with the same pipeline and special tokens on other texts.

    Args:
        text_iterator: texts, or lists of texts.
        vocab_size: the size of the new vocabulary.
        length: the number of texts, for the progress bar.
        new_special_tokens: more special tokens.
        special_tokens_map: old special token to new one.
        kwargs: arguments of the trainer of `tokenizers`.
    """
    check_training(text_iterator, vocab_size, length, new_special_tokens, special_tokens_map)
    names = dict(special_tokens_map or {})
    state = json.loads(self._tokenizer.to_str())
    added, processor, model = state.pop("added_tokens"), state.pop("post_processor"), state["model"]
    kind = model["type"]
    if kind not in _TRAINERS:
        raise TokenizerError(f"a tokenizer of type {kind} cannot be trained; its type must be {', '.join(_TRAINERS)}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if kind == "BPE" and model[name] is not None:
            kwargs.setdefault(name, model[name])
    if any(step["type"] == "ByteLevel" for step in _steps(state["pre_tokenizer"])):
        kwargs.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    kwargs |= _clear(model, names)
    special = [
        tokenizers.AddedToken(**{**token, "content": names.get(token["content"], token["content"])})
        for token in ({k: v for k, v in item.items() if k != "id"} for item in added)
        if token["special"] or kind == "Unigram"
    ]
    more = [as_added_token(token, special=True) for token in new_special_tokens or ()]
    special += [tokenizers.AddedToken(**token.to_dict()) for token in more]
    pipeline = Tokenizer.from_str(json.dumps(state))
    trainer = _TRAINERS[kind](vocab_size=vocab_size, special_tokens=special, **kwargs)
    pipeline.train_from_iterator(text_iterator, length=length, trainer=trainer)
    arguments = self._new_arguments() | dict.fromkeys(NAMES)
    for name in NAMES:
        if name in self._named:
            token = self._named[name]
            text = names.get(token.content, token.content)
            arguments[name] = AddedToken(**(token.to_dict() | {"content": text, "special": True}))
    old: list[Any] = [names.get(token, token) for token in self.additional_special_tokens or ()]
    arguments[ADDITIONAL] = [*old, *more]
    cls: Any = type(self)
    result: T = cls(tokenizer_object=_with_processor(pipeline, processor, names), **arguments)
    return result


def _clear(model: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Removes the vocabulary of a model in its JSON form; returns arguments for the trainer."""
    if model["type"] == "Unigram":
        unk = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        model["unk_id"], model["vocab"] = (None, []) if unk is None else (0, [[names.get(unk, unk), 0.0]])
        return {} if unk is None else {"unk_token": names.get(unk, unk)}
    model["vocab"] = {}
    if "merges" in model:
        model["merges"] = []
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return {}


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    """Yields the parts of a pre-tokenizer or post-processor in its JSON form; a sequence may contain sequences."""
    if state is None:
        return
    yield state
    for step in state.get("pretokenizers", state.get("processors", ())):
        yield from _steps(step)


def _with_processor(pipeline: Tokenizer, processor: Any, names: Mapping[str, str]) -> Tokenizer:
    """Returns the pipeline with a post-processor in its JSON form, whose tokens get their new names and ids."""
    for step in _steps(processor):
        for token in step.get("special_tokens", {}).values() if step["type"] == "TemplateProcessing" else ():
            token["tokens"] = [names.get(text, text) for text in token["tokens"]]
            token["ids"] = [pipeline.token_to_id(text) for text in token["tokens"]]
    return Tokenizer.from_str(json.dumps(json.loads(pipeline.to_str()) | {"post_processor": processor}))


def set_truncation_and_padding(
    self: FastTokenizer,
    padding_strategy: str,
    truncation_strategy: str,
    max_length: int,
    stride: int,
    pad_to_multiple_of: int | None,
    padding_side: str | None = None,
) -> None:
    """Sets truncation and padding of the pipeline itself, for code that calls `backend_tokenizer`.

    As in transformers, a call of the tokenizer removes these settings; the arguments of the call replace them.
    """
    if truncation_strategy == "do_not_truncate":
        self._tokenizer.no_truncation()
    else:
        strategy = getattr(truncation_strategy, "value", truncation_strategy)
        self._tokenizer.enable_truncation(max_length, stride=stride, strategy=strategy, direction=self.truncation_side)
    if padding_strategy == "do_not_pad":
        self._tokenizer.no_padding()
        return
    if self.pad_token is None or self.pad_token_id is None:
        raise TokenizerError("padding needs a padding token and this tokenizer has none; set pad_token")
    self._tokenizer.enable_padding(
        direction=padding_side or self.padding_side,
        pad_id=self.pad_token_id,
        pad_type_id=self.pad_token_type_id,
        pad_token=self.pad_token,
        length=max_length if padding_strategy == "max_length" else None,
        pad_to_multiple_of=pad_to_multiple_of,
    )
