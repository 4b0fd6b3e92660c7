"""`TokenizerBase`: the interface that `LlamaTokenizer` and `LlamaTokenizerFast` share.

A subclass provides the vocabulary, `_encode` and `_decode`; all other methods build on these. Some methods are
functions of other modules that the class body assigns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from puna.compat.transformers_bases import inherit_when_imported
from puna.errors import TokenizerError, show
from puna.tokenizer.arguments import NO_LIMIT, Arguments, CommonArguments, FromPretrained, as_ids, split_hub_arguments
from puna.tokenizer.calls import batch, lengths
from puna.tokenizer.calls.encoding import Call, Encoding, Input
from puna.tokenizer.chat.templates import apply_chat_template, default_template, get_chat_template, named_templates
from puna.tokenizer.files.config import save_pretrained
from puna.tokenizer.files.recipes import Recipe
from puna.tokenizer.huggingface.interface import SuperclassInterface
from puna.tokenizer.special import (
    ADDITIONAL,
    EXTRA,
    NAMES,
    AddedToken,
    NamedToken,
    NamedTokenId,
    TokenLike,
    add_special_tokens,
    add_tokens,
    as_added_token,
    check_types,
)
from puna.tokenizer.streams import TextStream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class TokenizerBase(SuperclassInterface):
    """Base class of `LlamaTokenizer` and `LlamaTokenizerFast`."""

    is_fast: ClassVar[bool]
    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012  # as in transformers
    padding_side = "right"
    truncation_side = "right"
    _infill_names: ClassVar[tuple[str, ...]] = ()
    """Arguments of a call that Code Llama's tokenizers have in addition."""
    _recipe: ClassVar[staticmethod[[Path, Arguments], Recipe]]
    """Reads the recipe from which this class builds the tokenizer of a path."""

    bos_token = NamedToken()
    eos_token = NamedToken()
    unk_token = NamedToken()
    sep_token = NamedToken()
    pad_token = NamedToken()
    cls_token = NamedToken()
    mask_token = NamedToken()
    bos_token_id = NamedTokenId()
    eos_token_id = NamedTokenId()
    unk_token_id = NamedTokenId()
    sep_token_id = NamedTokenId()
    pad_token_id = NamedTokenId()
    cls_token_id = NamedTokenId()
    mask_token_id = NamedTokenId()

    def __init__(self, **arguments: Unpack[CommonArguments]) -> None:
        """Stores the settings that both tokenizer classes have.

        Args:
            clean_up_tokenization_spaces: whether `decode` removes spaces before punctuation and contractions, unless
                its argument specifies it; ignored with a BPE vocabulary.
            use_default_system_prompt: whether the built-in Llama 2 template adds Meta's system prompt.
            model_max_length: the length that `truncation=True` truncates to.
            padding_side, truncation_side: "left" or "right".
            split_special_tokens: whether special tokens written in a text are encoded as text.
            chat_template: Jinja source, or several templates by name.
            other_config: other keys of tokenizer_config.json; `save_pretrained` writes them back. As in transformers,
                arguments with other names are such keys too.
        """
        values: dict[str, Any] = {**arguments}
        other = dict(values.pop("other_config", None) or {})
        other |= {name: values.pop(name) for name in values.keys() - CommonArguments.__optional_keys__}
        self.init_kwargs = values | other
        self._named = {n: as_added_token(values[n], special=True) for n in NAMES if values.get(n) is not None}
        check_types(values)
        more = other.pop(EXTRA, None) if values.get(ADDITIONAL) is None else values[ADDITIONAL]
        items = more.values() if isinstance(more, Mapping) else more or ()
        self._additional_special_tokens: list[AddedToken] | None = [as_added_token(t, special=True) for t in items]
        self._special_ids: frozenset[int] | None = None
        self.clean_up_tokenization_spaces: bool = values["clean_up_tokenization_spaces"]
        self.use_default_system_prompt: bool = values["use_default_system_prompt"]
        limit = other.pop("max_len", None) if values.get("model_max_length") is None else values["model_max_length"]
        self.model_max_length = NO_LIMIT if limit is None else int(limit)
        for name in ("padding_side", "truncation_side"):
            side = values.get(name)
            setattr(self, name, lengths.check_side(name, getattr(type(self), name) if side is None else side))
        self.model_input_names = list(values.get("model_input_names") or type(self).model_input_names)
        self.split_special_tokens = bool(values.get("split_special_tokens"))
        self.chat_template = named_templates(values.get("chat_template"))
        self.name_or_path = values.get("name_or_path", "")
        self.verbose = bool(other.pop("verbose", False))
        self._processor_class = other.get("processor_class")
        self._add_bos = self._add_eos = False
        self.other_config = other
        self.deprecation_warnings: dict[str, bool] = {}  # notices that were logged, by key
        self.notes: list[str] = []  # remarks on unusual files, for `puna inspect`

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""

    @abstractmethod
    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""

    @property
    @abstractmethod
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, ascending."""

    @abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""

    @abstractmethod
    def _token_id(self, token: str) -> int | None:
        """Returns the id of exactly this token, or None."""

    @abstractmethod
    def _id_token(self, index: int) -> str:
        """Returns the token of an id; raises TokenizerError if the vocabulary has no such id."""

    @abstractmethod
    def _add(self, tokens: Sequence[AddedToken]) -> int:
        """Registers tokens; tokens outside the vocabulary get the next ids. Returns the number of new ids."""

    def _set_notes(self, notes: Iterable[str]) -> None:
        """Sets the notes on the files from which this tokenizer was made."""
        self.notes = list(notes)
        if self.clean_up_tokenization_spaces and not self._cleans_up:
            self.notes.append("clean_up_tokenization_spaces has no effect on a BPE vocabulary, as in transformers 5")

    @abstractmethod
    def _encode(self, inputs: Sequence[Input], call: Call) -> list[Encoding]:
        """Encodes and truncates texts or pairs, without padding; all encoding goes through this method."""

    def _infill(self, item: Input, arguments: Mapping[str, Any]) -> Input:
        """Splits a text at Code Llama's marker; `arguments` are those in `_infill_names`."""
        return item

    @abstractmethod
    def _report_unknown(self, arguments: Mapping[str, Any]) -> None:
        """Reports arguments of a call that have unknown names."""

    @abstractmethod
    def _decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        """Decodes ids without clean-up."""

    @abstractmethod
    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """Returns a new stream that decodes as `decode` does, with its default settings but without clean-up."""

    @abstractmethod
    def skipped_tokens(self) -> dict[int, str]:
        """The tokens that `decode(skip_special_tokens=True)` leaves out: id to text."""

    @property
    @abstractmethod
    def _cleans_up(self) -> bool:
        """Whether `decode` cleans up if its argument does not specify it."""

    @abstractmethod
    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of tokens."""

    def _set_named(self, name: str, value: TokenLike | None) -> None:
        self._special_ids = None
        if value is None:
            self._named.pop(name, None)
        else:
            self._named[name] = as_added_token(value, special=True)

    @property
    def additional_special_tokens(self) -> list[str] | None:
        """Special tokens without a name such as `bos_token`; None if None was assigned."""
        tokens = self._additional_special_tokens
        return None if tokens is None else [token.content for token in tokens]

    @additional_special_tokens.setter
    def additional_special_tokens(self, value: Sequence[TokenLike] | None) -> None:
        self._special_ids = None
        self._additional_special_tokens = None if value is None else [as_added_token(t, special=True) for t in value]

    @property
    def special_tokens_map_extended(self) -> dict[str, AddedToken | list[AddedToken]]:
        """The special tokens that are set: name to token."""
        named: dict[str, AddedToken | list[AddedToken]] = {n: self._named[n] for n in NAMES if n in self._named}
        return named | ({ADDITIONAL: list(self._additional_special_tokens)} if self._additional_special_tokens else {})

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """The special tokens that are set: name to text."""
        return {
            name: [token.content for token in value] if isinstance(value, list) else value.content
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[AddedToken]:
        """Every special token once, in the order of the names."""
        unique: dict[str, AddedToken] = {}
        named = (self._named[name] for name in NAMES if name in self._named)
        for token in (*named, *(self._additional_special_tokens or ())):
            unique.setdefault(token.content, token)
        return list(unique.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """The text of every special token."""
        return [token.content for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """The id of every special token; that of the unknown token for a token outside the vocabulary."""
        ids: list[int | None] = self.convert_tokens_to_ids(self.all_special_tokens)
        return [index for index in ids if index is not None]

    def _special_id_set(self) -> frozenset[int]:
        if self._special_ids is None:
            self._special_ids = frozenset(self.all_special_ids)
        return self._special_ids

    add_tokens = add_tokens
    add_special_tokens = add_special_tokens

    def convert_tokens_to_ids(self, tokens: str | Sequence[str] | None) -> Any:
        """Returns the id of a token, or the ids of several; `unk_token_id` for a token outside the vocabulary."""
        if tokens is None:
            return None
        if isinstance(tokens, str):
            index = self._token_id(tokens)
            return self.unk_token_id if index is None else index
        if not isinstance(tokens, Iterable) or isinstance(tokens, bytes | Mapping):
            raise TokenizerError(f"tokens is {show(tokens)}; it must be a token or a list of tokens")
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Returns the token of an id, or the tokens of several.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        if isinstance(ids, int):
            return self._id_token(ids)
        skipped = self._special_id_set() if skip_special_tokens else frozenset()
        return [self._id_token(index) for index in as_ids(ids) if index not in skipped]

    @property
    def add_bos_token(self) -> bool:
        """Whether BOS is added before a text."""
        return self._add_bos

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._set_bos_and_eos(value, self._add_eos)

    @property
    def add_eos_token(self) -> bool:
        """Whether EOS is added after a text."""
        return self._add_eos

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._set_bos_and_eos(self._add_bos, value)

    def _set_bos_and_eos(self, add_bos: bool, add_eos: bool) -> None:
        self._add_bos, self._add_eos = add_bos, add_eos

    def _bos_and_eos(self) -> tuple[list[int], list[int]]:
        """Returns the ids to add before and after a text."""
        ids: list[list[int]] = []
        for name, added, index in (
            ("bos_token", self.add_bos_token, self.bos_token_id),
            ("eos_token", self.add_eos_token, self.eos_token_id),
        ):
            if added and index is None:
                raise TokenizerError(f"add_{name} is set, but there is no {name}; set {name}, or add_{name}=False")
            ids.append([index] if added and index is not None else [])
        return ids[0], ids[1]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Returns one sequence, or a pair, each with BOS and EOS as `add_bos_token` and `add_eos_token` specify."""
        lengths.check_pair(token_ids_0, token_ids_1)
        bos, eos = self._bos_and_eos()
        second = [] if token_ids_1 is None else bos + list(token_ids_1) + eos
        return bos + list(token_ids_0) + eos + second

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Returns how many tokens `add_special_tokens` adds to a text or pair."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Returns 1 for a special token (added by `build_inputs_with_special_tokens` or among the ids), else 0."""
        lengths.check_pair(token_ids_0, token_ids_1)
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise TokenizerError("ids that already have special tokens are one sequence; drop token_ids_1")
            special = self._special_id_set()
            return [int(index in special) for index in token_ids_0]
        bos, eos = ([1] * len(ids) for ids in self._bos_and_eos())
        second = [] if token_ids_1 is None else bos + [0] * len(token_ids_1) + eos
        return bos + [0] * len(token_ids_0) + eos + second

    __call__ = batch.call
    encode = batch.encode
    encode_plus = batch.encode_plus
    batch_encode_plus = batch.batch_encode_plus
    prepare_for_model = batch.prepare_for_model
    pad = lengths.pad
    truncate_sequences = lengths.truncate_sequences
    _id_columns = lengths.id_columns

    @property
    def default_chat_template(self) -> str:
        """The template for files without one: Llama 3's if the vocabulary has its header tokens, otherwise Llama 2's.

        Raises:
            ChatTemplateError: the vocabulary fits neither format.
        """
        return default_template(self._token_id, self.use_default_system_prompt)

    get_chat_template = get_chat_template
    apply_chat_template = apply_chat_template
    decode = batch.decode
    batch_decode = batch.batch_decode

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Unpack[FromPretrained]) -> Self:
        """Loads this class from a folder, a file or the hub (owner/name); `arguments` override the files.

        The arguments with which transformers controls downloads have the same meaning here, and no effect on a local
        path.

        Raises:
            ModelNotFoundError: there is no such folder or file.
            TokenizerError: the files cannot be read or need the other tokenizer class, or an argument is unknown.
        """
        path, constructor_arguments, other = split_hub_arguments(pretrained_model_name_or_path, arguments)
        return cls.from_recipe(cls._recipe(path, constructor_arguments).with_other(other))

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """Creates a tokenizer from a recipe."""

    save_pretrained = save_pretrained

    @abstractmethod
    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes the SentencePiece model into an existing folder; returns the paths of the files."""

    @property
    @abstractmethod
    def _has_model(self) -> bool:
        """Whether there is a SentencePiece model to save."""

    @abstractmethod
    def _pipeline_json(self) -> dict[str, Any] | None:
        """Returns tokenizer.json; None if this tokenizer does not save one."""

    @property
    @abstractmethod
    def _has_own_ids(self) -> bool:
        """Whether the ids are SentencePiece's own; see `OWN_IDS` in files/config.py."""

    @abstractmethod
    def _class_config(self) -> dict[str, Any]:
        """Returns the keys of tokenizer_config.json that depend on the class."""


inherit_when_imported(TokenizerBase, "transformers.tokenization_utils_base", "PreTrainedTokenizerBase")
