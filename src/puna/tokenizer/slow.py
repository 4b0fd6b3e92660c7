"""`LlamaTokenizer`: the SentencePiece tokenizer of LLaMA 1 and 2, with three named behaviours in one implementation.

| behaviour   | special tokens in a text                | text after one                      | decoding            |
|-------------|-----------------------------------------|-------------------------------------|---------------------|
| "sp"        | are text, unless asked for (templates)  | starts afresh, with its own prefix  | SentencePiece's     |
| "hf-legacy" | are tokens                              | starts afresh, with its own prefix  | transformers 4.34.1 |
| "hf"        | are tokens                              | keeps exactly its own leading space | transformers 4.34.1 |

"hf-legacy" is `legacy=True`, the default of the Hugging Face page; "hf" is `legacy=False`
(github.com/huggingface/transformers/pull/24565). `load_tokenizer` uses "sp".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from puna.errors import TokenizerError
from puna.files import atomic_write
from puna.tokenizer.added_token import AddedToken, TokenLike
from puna.tokenizer.arguments import Arguments, SharedArguments
from puna.tokenizer.base import TokenizerBase
from puna.tokenizer.calling import Input
from puna.tokenizer.cutting import cut, matcher
from puna.tokenizer.encoding import Encoding
from puna.tokenizer.sentencepiece.engine import open_model, read_model
from puna.tokenizer.slow_columns import SlowColumns
from puna.tokenizer.slow_stream import SPACE, HfStream, Pieces, SpStream
from puna.tokenizer.stream import TextStream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from puna.tokenizer.fast import LlamaTokenizerFast

Behaviour = Literal["sp", "hf-legacy", "hf"]


class LlamaTokenizer(TokenizerBase):
    """Text to ids by a SentencePiece model.

    Args:
        vocab_file: path of the SentencePiece model.
        unk_token, bos_token, eos_token, pad_token: special tokens; the vocabulary grows by those it lacks.
        sp_model_kwargs: arguments of `SentencePieceProcessor`, such as enable_sampling, nbest_size, alpha.
        add_bos_token, add_eos_token: whether BOS is put before a text, and EOS after it.
        legacy: True for the behaviour "hf-legacy", False for "hf"; None means True.
        behaviour: names the behaviour directly.
        added_tokens_decoder: more tokens by id.
        from_slow: with legacy False, keep the model's own prefix rule, as transformers does when it converts.
        model_proto: the model's bytes, instead of `vocab_file`.

    Raises:
        TokenizerError: the model cannot be read, or arguments contradict each other.
    """

    is_fast = False
    default_padding_side = "right"
    preferred_file = "tokenizer.model"
    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  # the page's name and form
    _first_keeps_more = True

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        unk_token: TokenLike | None = "<unk>",
        bos_token: TokenLike | None = "<s>",
        eos_token: TokenLike | None = "</s>",
        pad_token: TokenLike | None = None,
        sp_model_kwargs: Mapping[str, Any] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        clean_up_tokenization_spaces: bool = False,
        use_default_system_prompt: bool = True,
        spaces_between_special_tokens: bool = False,
        legacy: bool | None = None,
        *,
        behaviour: Behaviour | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        from_slow: bool = False,
        model_proto: bytes | None = None,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            use_default_system_prompt=use_default_system_prompt,
            **shared,
        )
        self.behaviour = _behaviour(behaviour, legacy)
        self.legacy = self.behaviour != "hf"
        if shared.get("split_special_tokens") is None:
            self.split_special_tokens = self.behaviour == "sp"
        self.vocab_file = None if vocab_file is None else str(vocab_file)
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self._set_ends(add_bos_token, add_eos_token)
        self.spaces_between_special_tokens = spaces_between_special_tokens
        if model_proto is None and self.vocab_file is None:
            raise TokenizerError("LlamaTokenizer needs vocab_file, the path of a SentencePiece model")
        self._proto = read_model(Path(self.vocab_file or "")) if model_proto is None else model_proto
        self._keep_prefix_rule = from_slow
        self._load_engine()
        self._added = dict(added_tokens_decoder or {})
        self._added_ids = {token.content: index for index, token in self._added.items()}
        self._add([token for token in self.all_special_tokens_extended if token.content not in self._added_ids])

    @classmethod
    def from_source(cls, file: Path, kind: str, arguments: Arguments) -> Self:
        """Builds this class from a SentencePiece model, or a GGUF file's."""
        from puna.tokenizer.files import recipes
        from puna.tokenizer.files.gguf import sentencepiece_model

        if kind == "sentencepiece":
            return cls(file, **arguments)
        if kind == "gguf":
            vocabulary = recipes.read_gguf(file)
            if vocabulary.model == "llama":
                named = recipes.gguf_arguments(vocabulary, arguments)
                return cls(model_proto=sentencepiece_model(vocabulary), **named)
        raise TokenizerError(f"{file}: no SentencePiece vocabulary, which LlamaTokenizer needs; use AutoTokenizer")

    def _load_engine(self) -> None:
        name = self.vocab_file or "the SentencePiece model"
        without_prefix = self.behaviour == "hf" and not self._keep_prefix_rule
        self.sp_model, spec = open_model(self._proto, name, self.sp_model_kwargs, without_prefix)
        eats_prefix = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self._pieces = Pieces(self.sp_model, eats_prefix, spec.remove_extra_whitespaces)
        self._patterns: dict[bool, re.Pattern[str] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        engine = ("sp_model", "_pieces", "_patterns")
        return {name: value for name, value in self.__dict__.items() if name not in engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_engine()

    @property
    def vocab_size(self) -> int:
        """Pieces in the SentencePiece model."""
        return self._pieces.count

    def __len__(self) -> int:
        return self.vocab_size + sum(index >= self.vocab_size for index in self._added)

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        pieces: list[str] = self.sp_model.id_to_piece(list(range(self.vocab_size)))
        return {piece: index for index, piece in enumerate(pieces)} | self._added_ids

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, ascending; the named special tokens count among them."""
        return dict(sorted(self._added.items()))

    def _token_id(self, token: str) -> int | None:
        index = self._added_ids.get(token)
        return self._pieces.id_of(token) if index is None else index

    def _id_token(self, index: int) -> str:
        added = self._added.get(index)
        return self._pieces.text(index) if added is None else added.content

    def _add(self, tokens: Sequence[AddedToken]) -> int:
        before = len(self)
        following = max([self.vocab_size - 1, *self._added]) + 1
        named = set(self.all_special_tokens)
        for token in tokens:
            index = self._token_id(token.content)
            if index is None:
                index, following = following, following + 1
            if token.special and token.content not in named:
                self._additional.append(token)
            self._added[index] = token
            self._added_ids[token.content] = index
        self._special_ids = None
        self._patterns = {}
        return len(self) - before

    def tokenize(
        self, text: str, add_special_tokens: bool = False, split_special_tokens: bool | None = None
    ) -> list[str]:
        """The text as tokens; `add_special_tokens` is accepted and, as in transformers, without effect."""
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        return [self._id_token(index) for index in self._text_ids(text, split)]

    def _encode_many(self, inputs: Sequence[Input]) -> list[Encoding]:
        return [self._encode_one(item) for item in inputs]

    def _encode_one(self, item: Input) -> Encoding:
        first = self._input_ids(item.text, item.split_special_tokens)
        second = None if item.pair is None else self._input_ids(item.pair, item.split_special_tokens)
        if item.add_special_tokens:
            ids = self.build_inputs_with_special_tokens(first, second)
            special = self.get_special_tokens_mask(first, second)
            types = self.create_token_type_ids_from_sequences(first, second)
        else:
            ids = first + (second or [])
            special = [0] * len(ids)
            types = [0] * len(first) + [1] * len(second or [])
        return Encoding(SlowColumns(ids, types, special, len(first), self._id_token))

    def _input_ids(self, text: str | Sequence[str], split: bool) -> list[int]:
        words = [text] if isinstance(text, str) else text
        return [index for word in words for index in self._text_ids(word, split)]

    def _text_ids(self, text: str, split: bool) -> list[int]:
        """The ids of a text, special tokens in it encoded as text if `split`."""
        if self.behaviour != "hf" or not text:
            return [index for part in self._parts(text, split) for index in self._part_ids(part)]
        ids = [i for part in self._parts(SPACE + text.replace(SPACE, " "), split) for i in self._part_ids(part)]
        if len(ids) > 1 and ids[0] == self._pieces.id_of(SPACE) and ids[1] in self._special_id_set():
            return ids[1:]
        return ids

    def _part_ids(self, part: str | int) -> list[int]:
        if isinstance(part, int):
            return [part]
        if self.behaviour == "hf" and part.startswith((SPACE, " ")):
            # With the dummy prefix off SentencePiece still drops a leading space, so transformers encodes the unknown
            # token in front and takes its pieces away again.
            unk = self.unk_token or ""
            ids: list[int] = self.sp_model.encode(unk + part)
            return ids[len(self.sp_model.encode(unk)) :]
        plain: list[int] = self.sp_model.encode(part)
        return plain

    def _parts(self, text: str, split: bool) -> list[str | int]:
        """A text with added tokens cut out: the pieces of text between, and the ids of the tokens."""
        if split not in self._patterns:
            self._patterns[split] = matcher(self._cut_tokens(split))
        pieces = cut(text, self._patterns[split], lambda word: self._added.get(self._added_ids.get(word, -1)))
        return [self._known_id(piece) if is_token else piece for piece, is_token in pieces]

    def _known_id(self, token: str) -> int:
        index = self._token_id(token)
        assert index is not None
        return index

    def _cut_tokens(self, split: bool) -> set[str]:
        """The tokens to cut out of a text, special ones encoded as text if `split`."""
        if self.behaviour != "sp":
            return set() if split else set(self._added_ids)
        words = {token.content for token in self._added.values() if not (token.special and split)}
        return (words if split else words | self._pieces.control_tokens()) - {self.unk_token}

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for the first sequence with its special tokens, 1 for the second with its own."""
        first = [0] * len(self.build_inputs_with_special_tokens(token_ids_0))
        return first + ([] if token_ids_1 is None else [1] * len(self.build_inputs_with_special_tokens(token_ids_1)))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens are put around a text or pair."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens, special tokens shown."""
        if self.behaviour == "sp":
            return self._decode(self.convert_tokens_to_ids(list(tokens)), False, False)
        stream = self._hf_stream(False, "", frozenset())
        return "".join([stream.push_token(token) for token in tokens]) + stream.finish()

    def _decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        stream = self._stream(skip_special_tokens, " " if spaces_between_special_tokens else "")
        return "".join([stream.push(index) for index in ids]) + stream.finish()

    def _raw_text_stream(self, skip_special_tokens: bool) -> TextStream:
        return self._stream(skip_special_tokens, " ")

    def _stream(self, skip: bool, separator: str) -> TextStream:
        special = self._special_id_set()
        if self.behaviour == "sp":
            added = frozenset(index for index, token in self._added.items() if token.special)
            skipped = (special | added) - {self._pieces.unk_id} if skip else frozenset()
            return SpStream(self._pieces, skipped, not skip, self._id_token)
        beyond = {t for t in self.additional_special_tokens if (self._token_id(t) or 0) >= self.vocab_size}
        return self._hf_stream(skip, separator, frozenset(self._added_ids) - set(self.all_special_tokens) | beyond)

    def _hf_stream(self, skip: bool, separator: str, added: frozenset[str]) -> HfStream:
        return HfStream(
            self._pieces,
            self._id_token,
            skipped=self._special_id_set() if skip else frozenset(),
            special=frozenset(self.all_special_tokens),
            added=added,
            separator=separator,
            legacy=self.legacy,
        )

    def pipeline_twin(self) -> LlamaTokenizerFast:
        """The same vocabulary as a pipeline of `tokenizers`; it reads special tokens in a text as tokens."""
        from puna.tokenizer.fast import LlamaTokenizerFast
        from puna.tokenizer.sentencepiece.convert import convert_model

        return LlamaTokenizerFast(
            tokenizer_object=convert_model(self._proto, self.vocab_file or "the SentencePiece model"),
            # matched before the text is normalised, as here: what follows a token starts afresh
            added_tokens_decoder={
                i: replace(token, normalized=False) for i, token in self.added_tokens_decoder.items()
            },
            unk_token=self.unk_token,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            pad_token=self.pad_token,
            add_bos_token=self.add_bos_token,
            add_eos_token=self.add_eos_token,
        )

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes tokenizer.model into an existing folder; returns its path."""
        folder = Path(save_directory)
        if not folder.is_dir():
            raise TokenizerError(f"{folder}: no such folder; create it first, or use save_pretrained")
        path = folder / f"{filename_prefix}-tokenizer.model" if filename_prefix else folder / "tokenizer.model"
        with atomic_write(path) as file:
            file.write(self._proto)
        return (str(path),)


def _behaviour(behaviour: Behaviour | None, legacy: bool | None) -> Behaviour:
    named: Behaviour = "hf" if legacy is False else "hf-legacy"
    if behaviour is None:
        return named
    if behaviour not in ("sp", "hf-legacy", "hf"):
        raise TokenizerError(f"behaviour={behaviour!r}; choose 'sp', 'hf-legacy' or 'hf'")
    if legacy is not None and behaviour != named:
        raise TokenizerError(f"behaviour={behaviour!r} and legacy={legacy} contradict each other; drop one")
    return behaviour
