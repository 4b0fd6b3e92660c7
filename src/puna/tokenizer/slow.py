"""`LlamaTokenizer`: the SentencePiece tokenizer of LLaMA 1 and 2, with three named behaviours in one implementation.

| behaviour   | special tokens in a text               | text after a special token            | decoding            |
|-------------|----------------------------------------|---------------------------------------|---------------------|
| "sp"        | are text by default                    | encoded separately, with prefix space | SentencePiece       |
| "hf-legacy" | are tokens                             | encoded separately, with prefix space | transformers 4.34.1 |
| "hf"        | are tokens                             | no space is added or removed          | transformers 4.34.1 |

"hf-legacy" is `legacy=True`, the default of `LlamaTokenizer` in transformers; "hf" is `legacy=False`
(github.com/huggingface/transformers/pull/24565). `load_tokenizer` uses "sp".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.compat.transformers_bases import inherit_when_imported
from puna.errors import TokenizerError, show
from puna.files import folder_path, path_argument
from puna.tokenizer.arguments import Behaviour, SharedArguments, check_string, check_vocabulary
from puna.tokenizer.base import TokenizerBase
from puna.tokenizer.calls.encoding import Call, Encoding, Input, Text
from puna.tokenizer.calls.splitting import split_at_tokens, split_pattern
from puna.tokenizer.files.recipes import Recipe, sentencepiece_recipe
from puna.tokenizer.sentencepiece.engine import (
    SPACE,
    HfStream,
    Pieces,
    SpStream,
    open_model,
    read_model,
    write_model_file,
)
from puna.tokenizer.special import LOGGER, AddedToken, TokenLike, as_special
from puna.tokenizer.streams import TextStream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class LlamaTokenizer(TokenizerBase):
    """A tokenizer that encodes with a SentencePiece model.

    Args:
        vocab_file: path of the SentencePiece model.
        unk_token, bos_token, eos_token, pad_token: special tokens; missing tokens are added to the vocabulary.
        sp_model_kwargs: arguments of `SentencePieceProcessor`, such as enable_sampling, nbest_size, alpha.
        add_bos_token, add_eos_token: whether to add BOS before a text, and EOS after it.
        legacy: True for the behaviour "hf-legacy", False for "hf"; None means True.
        behaviour: the name of the behaviour, instead of `legacy`.
        added_tokens_decoder: more tokens by id.
        from_slow: with legacy False, add a prefix space if the model specifies it, like conversions by transformers.
        model_proto: the bytes of the model, instead of `vocab_file`.

    Raises:
        TokenizerError: the model cannot be read, or arguments contradict each other.
    """

    is_fast = False
    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  # as in transformers
    max_model_input_sizes = {"hf-internal-testing/llama-tokenizer": 2048}  # noqa: RUF012  # as in transformers
    _recipe = staticmethod(sentencepiece_recipe)
    _has_model = True

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
        if legacy is None and behaviour is None:
            _report_legacy(type(self).__name__)
        self.behaviour = _behaviour(behaviour, legacy)
        self.legacy = self.behaviour != "hf"
        if shared.get("split_special_tokens") is None:
            self.split_special_tokens = self.behaviour == "sp"
        self.vocab_file = None if vocab_file is None else str(path_argument(vocab_file, "vocab_file"))
        check_vocabulary(model_proto, sp_model_kwargs, added_tokens_decoder)
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self.init_kwargs |= {
            "vocab_file": self.vocab_file,
            "sp_model_kwargs": self.sp_model_kwargs,
            "spaces_between_special_tokens": spaces_between_special_tokens,
            "legacy": self.legacy,
            "behaviour": self.behaviour,
            "from_slow": from_slow,
            "model_proto": model_proto,
            "added_tokens_decoder": dict(added_tokens_decoder or {}),
        }
        self.init_kwargs |= {"add_bos_token": add_bos_token, "add_eos_token": add_eos_token}
        self._set_bos_and_eos(add_bos_token, add_eos_token)
        self.spaces_between_special_tokens = spaces_between_special_tokens
        if model_proto is None and self.vocab_file is None:
            raise TokenizerError("LlamaTokenizer needs vocab_file, the path of a SentencePiece model")
        self._proto = read_model(Path(self.vocab_file or "")) if model_proto is None else model_proto
        self._keep_prefix_rule = from_slow
        self._load_engine()
        self._added = dict(added_tokens_decoder or {})
        self._added_ids = {token.content: index for index, token in self._added.items()}
        missing = [t for t in self.all_special_tokens_extended if t.content not in self._added_ids]
        self._add([as_special(self, token) for token in missing])

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """Creates a tokenizer from a recipe."""
        tokenizer = cls(
            recipe.vocab_file, behaviour=recipe.behaviour, model_proto=recipe.model_proto, **recipe.arguments
        )
        added = tokenizer.added_tokens_decoder
        ids = range(tokenizer.vocab_size, max(added, default=0))  # may be hundreds of millions in a damaged file
        missing = len(ids) - sum(index in ids for index in added)
        note = (
            "ids between the added tokens, such as {}, have no token; transformers 5 numbers added tokens without gaps"
        )
        first = next((index for index in ids if index not in added), None)
        tokenizer._set_notes([f"{missing} {note.format(first)}"] if missing else [])
        return tokenizer

    def _load_engine(self) -> None:
        name = self.vocab_file or "the SentencePiece model"
        without_prefix = self.behaviour == "hf" and not self._keep_prefix_rule
        self.sp_model, spec = open_model(self._proto, name, self.sp_model_kwargs, without_prefix)
        self._pieces = Pieces(self.sp_model, spec)
        self._patterns: dict[bool, re.Pattern[str] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        engine = ("sp_model", "_pieces", "_patterns")
        return {name: value for name, value in self.__dict__.items() if name not in engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_engine()

    @property
    def vocab_size(self) -> int:
        """Number of pieces in the SentencePiece model."""
        return self._pieces.count

    def __len__(self) -> int:
        return self.vocab_size + sum(index >= self.vocab_size for index in self._added)

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        pieces: list[str] = self.sp_model.id_to_piece(list(range(self.vocab_size)))
        return {piece: index for index, piece in enumerate(pieces)} | self._added_ids

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, ascending; includes the named special tokens."""
        return dict(sorted(self._added.items()))

    def _token_id(self, token: str) -> int | None:
        index = self._added_ids.get(token)
        return self._pieces.id_of(token) if index is None else index

    def _id_token(self, index: int) -> str:
        added = self._added.get(index)
        return self._pieces.text(index) if added is None else added.content

    def _add(self, tokens: Sequence[AddedToken]) -> int:
        old_length = len(self)
        next_id = max([self.vocab_size - 1, *self._added]) + 1
        special = set(self.all_special_tokens)
        for token in tokens:
            index = self._token_id(token.content)
            if index is None:
                index, next_id = next_id, next_id + 1
            if token.special and token.content not in special:
                self._additional_special_tokens = [*(self._additional_special_tokens or ()), token]
            self._added[index] = token
            self._added_ids[token.content] = index
        self._special_ids = None
        self._patterns = {}
        return len(self) - old_length

    def tokenize(
        self, text: str, add_special_tokens: bool = False, split_special_tokens: bool | None = None, **options: Any
    ) -> list[str]:
        """Returns the text as tokens; as in transformers, `add_special_tokens` and other options have no effect."""
        self._report_unknown({name: value for name, value in options.items() if name != "is_split_into_words"})
        check_string(text)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        tokens = self._text_tokens(text, split, str)
        return [self._id_token(token) if isinstance(token, int) else token for token in tokens]

    def _encode(self, inputs: Sequence[Input], call: Call) -> list[Encoding]:
        return [self._encode_one(item, call) for item in inputs]

    def _encode_one(self, item: Input, call: Call) -> Encoding:
        first = self._input_ids(item.text, item)
        return Encoding(self._id_columns(first, None if item.pair is None else self._input_ids(item.pair, item), call))

    def _input_ids(self, text: Text, item: Input) -> list[int]:
        if isinstance(text, str):
            return self._text_ids(text, item.split_special_tokens)
        ids = [token for token in text if isinstance(token, int)]
        if len(ids) == len(text):
            return ids
        if not item.words:
            return list(self.convert_tokens_to_ids([str(token) for token in text]))
        return [index for word in text for index in self._text_ids(str(word), item.split_special_tokens)]

    def _text_ids(self, text: str, split: bool) -> list[int]:
        """Returns the ids of a text; if `split`, special tokens in it are encoded as text."""
        return self._text_tokens(text, split, int)

    def _text_tokens(self, text: str, split: bool, kind: type) -> list[Any]:
        """Returns the ids of a text, or with `kind=str` its pieces and the ids of its added tokens."""
        if self.behaviour != "hf" or not text:
            return [token for part in self._parts(text, split) for token in self._part_tokens(part, kind)]
        parts = self._parts(SPACE + text.replace(SPACE, " "), split)
        tokens = [token for part in parts for token in self._part_tokens(part, kind)]
        space = SPACE if kind is str else self._pieces.id_of(SPACE)
        return tokens[1:] if len(tokens) > 1 and tokens[0] == space and tokens[1] in self._special_id_set() else tokens

    def _part_tokens(self, part: str | int, kind: type) -> list[Any]:
        if isinstance(part, int):
            return [part]
        if self.behaviour == "hf" and part.startswith((SPACE, " ")):
            # SentencePiece drops a leading space even without the dummy prefix. Like transformers, encode the unknown
            # token in front of the part, then remove its pieces.
            tokens: list[Any] = self.sp_model.encode((self.unk_token or "") + part, out_type=kind)
            return tokens[self.unk_token_length :]
        plain: list[Any] = self.sp_model.encode(part, out_type=kind)
        return plain

    @property
    def unk_token_length(self) -> int:
        """The number of pieces of the unknown token's text."""
        return len(self.sp_model.encode(self.unk_token or ""))

    def get_spm_processor(self, from_slow: bool = False) -> Any:
        """Returns a new `SentencePieceProcessor` of the vocabulary; `from_slow` keeps the rule of the prefix space."""
        without_prefix = self.behaviour == "hf" and not from_slow
        return open_model(
            self._proto, self.vocab_file or "the SentencePiece model", self.sp_model_kwargs, without_prefix
        )[0]

    def _parts(self, text: str, split: bool) -> list[str | int]:
        """Splits a text at its added tokens: returns, in order, the texts between the tokens and the tokens' ids."""
        if split not in self._patterns:
            self._patterns[split] = split_pattern(self._split_tokens(split))
        parts = split_at_tokens(
            text, self._patterns[split], lambda word: self._added.get(self._added_ids.get(word, -1))
        )
        return [self.convert_tokens_to_ids(part) if is_token else part for part, is_token in parts]

    def _split_tokens(self, split: bool) -> set[str]:
        """Returns the tokens at which to split a text; without special tokens if `split`."""
        if self.behaviour != "sp":
            return set() if split else set(self._added_ids)
        words = {token.content for token in self._added.values() if not (token.special and split)}
        return (words if split else words | self._pieces.control_tokens) - {self.unk_token}

    def _report_unknown(self, arguments: Mapping[str, Any]) -> None:
        if arguments:  # like transformers, whose fast tokenizer refuses them
            LOGGER.warning("Keyword arguments %s not recognized.", dict(arguments))

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Returns 0 for the first sequence and its special tokens, 1 for the second and its special tokens."""
        first = [0] * len(self.build_inputs_with_special_tokens(token_ids_0))
        return first + ([] if token_ids_1 is None else [1] * len(self.build_inputs_with_special_tokens(token_ids_1)))

    def skipped_tokens(self) -> dict[int, str]:
        """The special tokens: id to text. In the behaviour "sp" also all control pieces, but not the unknown token."""
        special = self._special_id_set()
        if self.behaviour == "sp":
            added = {index for index, token in self._added.items() if token.special}
            special = (special | added | self._pieces.control_ids) - {self._pieces.unk_id}
        return {index: self._id_token(index) for index in special}

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of tokens, including special tokens."""
        if self.behaviour == "sp":
            return self._decode(self.convert_tokens_to_ids(list(tokens)), False, False)
        stream = self._hf_stream(frozenset(), "", frozenset())
        return "".join([stream.push_token(token) for token in tokens]) + stream.rest()

    def _decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        stream = self._stream(skip_special_tokens, " " if spaces_between_special_tokens else "")
        return "".join([stream.push(index) for index in ids]) + stream.rest()

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """Returns a new stream that decodes as `decode` does, with its default settings but without clean-up."""
        return self._stream(skip_special_tokens, " ")

    _cleans_up = False  # as in transformers 5.23, where this class is a BPE tokenizer

    def _stream(self, skip: bool, separator: str) -> TextStream:
        skipped = frozenset(self.skipped_tokens() if skip else ())
        if self.behaviour == "sp":
            return SpStream(self._pieces, skipped, self._id_token)
        new = {t for t in self.additional_special_tokens or () if (self._token_id(t) or 0) >= self.vocab_size}
        return self._hf_stream(skipped, separator, frozenset(self._added_ids) - set(self.all_special_tokens) | new)

    def _hf_stream(self, skipped: frozenset[int], separator: str, added: frozenset[str]) -> HfStream:
        return HfStream(
            self._pieces,
            self._id_token,
            skipped=skipped,
            special=frozenset(self.all_special_tokens),
            added=added,
            separator=separator,
            legacy=self.legacy,
        )

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes tokenizer.model into an existing folder; returns its path."""
        return (write_model_file(self._proto, folder_path(save_directory), filename_prefix),)

    def _pipeline_json(self) -> dict[str, Any] | None:
        if self.behaviour != "sp":  # the files of transformers 4.34.1 have no tokenizer.json
            return None
        from puna.tokenizer.fast import LlamaTokenizerFast
        from puna.tokenizer.sentencepiece.convert import convert_model

        # normalized=False: tokens match in the original text, and text after them is encoded separately, as here.
        added = {index: token.with_flags(normalized=False) for index, token in self.added_tokens_decoder.items()}
        return LlamaTokenizerFast(
            tokenizer_object=convert_model(self._proto, self.vocab_file or "the SentencePiece model"),
            added_tokens_decoder=added,
            unk_token=self.unk_token,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            pad_token=self.pad_token,
            add_bos_token=self.add_bos_token,
            add_eos_token=self.add_eos_token,
        )._pipeline_json()

    @property
    def _has_own_ids(self) -> bool:
        return self.behaviour == "sp"

    def _class_config(self) -> dict[str, Any]:
        return {
            # With LlamaTokenizer, transformers 5 would ignore tokenizer.json and build its own pipeline, with other ids
            # for texts that begin with a space.
            "tokenizer_class": "PreTrainedTokenizerFast" if self.behaviour == "sp" else "LlamaTokenizer",
            "legacy": self.legacy,
            "sp_model_kwargs": self.sp_model_kwargs,
            "spaces_between_special_tokens": self.spaces_between_special_tokens,
        }


@functools.cache
def _report_legacy(name: str) -> None:
    """Logs once per process that the default behaviour is the legacy one, as transformers does."""
    LOGGER.warning(
        "%s uses the legacy behaviour, which adds a space to text after a special token; legacy=False does not, and "
        "legacy=True chooses the legacy behaviour without this notice (github.com/huggingface/transformers/pull/24565)",
        name,
    )


def _behaviour(behaviour: Behaviour | None, legacy: bool | None) -> Behaviour:
    from_legacy: Behaviour = "hf" if legacy is False else "hf-legacy"
    if behaviour is None:
        return from_legacy
    if behaviour not in ("sp", "hf-legacy", "hf"):
        raise TokenizerError(f"behaviour={show(behaviour)}; choose 'sp', 'hf-legacy' or 'hf'")
    if legacy is not None and behaviour != from_legacy:
        raise TokenizerError(f"behaviour={show(behaviour)} and legacy={legacy} contradict each other; drop one")
    return behaviour


for _module, _name in (  # of transformers 4 and 5
    ("transformers.tokenization_utils", "PreTrainedTokenizer"),
    ("transformers.tokenization_python", "PythonBackend"),
):
    inherit_when_imported(LlamaTokenizer, _module, _name)
