"""What every tokenizer shares beyond encoding and chat: settings, decoding, saving and loading."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from puna.errors import TokenizerError
from puna.tokenizer.added_token import AddedToken, TokenLike, as_added_token
from puna.tokenizer.arguments import NO_LIMIT, Arguments, ChatTemplate, FromPretrained, local, merged
from puna.tokenizer.chatting import ChattingTokenizer
from puna.tokenizer.ids import as_ids
from puna.tokenizer.prepare import check_side
from puna.tokenizer.special import NAMES
from puna.tokenizer.stream import CleanUpStream, TextStream, clean_up

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class TokenizerBase(ChattingTokenizer):
    """Base of `LlamaTokenizer` and `LlamaTokenizerFast`."""

    default_padding_side: ClassVar[str]
    preferred_file: ClassVar[str]

    def __init__(
        self,
        *,
        unk_token: TokenLike | None,
        bos_token: TokenLike | None,
        eos_token: TokenLike | None,
        pad_token: TokenLike | None,
        clean_up_tokenization_spaces: bool,
        use_default_system_prompt: bool,
        sep_token: TokenLike | None = None,
        cls_token: TokenLike | None = None,
        mask_token: TokenLike | None = None,
        additional_special_tokens: Sequence[TokenLike] | None = None,
        model_max_length: int | None = None,
        padding_side: str | None = None,
        truncation_side: str = "right",
        model_input_names: Sequence[str] = ("input_ids", "attention_mask"),
        split_special_tokens: bool | None = None,
        chat_template: ChatTemplate | None = None,
        name_or_path: str = "",
        other_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        clean_up_tokenization_spaces: whether `decode` takes out spaces before punctuation and contractions.
        use_default_system_prompt: whether the built-in Llama 2 template puts in Meta's system prompt.
        model_max_length: the length `truncation=True` cuts to.
        padding_side, truncation_side: "left" or "right".
        split_special_tokens: whether special tokens written in a text are encoded as text.
        chat_template: Jinja source, or several by name.
        other_config: what tokenizer_config.json holds besides; written back by `save_pretrained`.
        """
        super().__init__()
        given = (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token)
        for name, token in zip(NAMES, given, strict=True):
            self._name(name, token)
        self._additional = [as_added_token(token, special=True) for token in additional_special_tokens or ()]
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.use_default_system_prompt = use_default_system_prompt
        self.model_max_length = NO_LIMIT if model_max_length is None else int(model_max_length)
        self.padding_side = check_side(
            "padding_side", self.default_padding_side if padding_side is None else padding_side
        )
        self.truncation_side = check_side("truncation_side", truncation_side)
        self.model_input_names = list(model_input_names)
        self.split_special_tokens = bool(split_special_tokens)
        self.chat_template = chat_template
        self.name_or_path = name_or_path
        self._add_bos = self._add_eos = False
        self.other_config = dict(other_config or {})

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""

    @property
    @abstractmethod
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, ascending."""

    @abstractmethod
    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""

    @abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""

    @property
    def vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self.get_vocab()

    @abstractmethod
    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""

    @abstractmethod
    def _decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        """Decodes ids without clean-up."""

    @abstractmethod
    def _raw_text_stream(self, skip_special_tokens: bool) -> TextStream:
        """The twin of `_decode` token by token, at the default spaces_between_special_tokens."""

    @abstractmethod
    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes the SentencePiece model into a folder; returns the paths written."""

    @property
    def add_bos_token(self) -> bool:
        """Whether BOS is put before a text."""
        return self._add_bos

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._set_ends(value, self._add_eos)

    @property
    def add_eos_token(self) -> bool:
        """Whether EOS is put after a text."""
        return self._add_eos

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._set_ends(self._add_bos, value)

    def _set_ends(self, add_bos: bool, add_eos: bool) -> None:
        self._add_bos, self._add_eos = add_bos, add_eos

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Added token to id, ascending by id."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Added token to id."""
        return self.added_tokens_encoder

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the ids of several; a token outside the vocabulary gets `unk_token_id`."""
        if isinstance(tokens, str):
            index = self._token_id(tokens)
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        if isinstance(ids, int):
            return self._id_token(ids)
        skipped = self._special_id_set() if skip_special_tokens else frozenset()
        return [self._id_token(index) for index in as_ids(ids) if index not in skipped]

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """The text of one sequence of ids.

        Args:
            token_ids: an id, a list, an array or a tensor.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: None takes the tokenizer's setting.
            spaces_between_special_tokens: `LlamaTokenizer` only: whether added tokens get spaces around them.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        text = self._decode(as_ids(token_ids), skip_special_tokens, spaces_between_special_tokens)
        clean = self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else False
        return clean_up(text) if clean or clean_up_tokenization_spaces else text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The text of each sequence of ids."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """What `StreamDecoder` drives: `decode` at its default settings, token by token."""
        stream = self._raw_text_stream(skip_special_tokens)
        return CleanUpStream(stream) if self.clean_up_tokenization_spaces else stream

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Takes spaces before punctuation and English contractions out."""
        return clean_up(out_string)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """BOS and EOS, as set, around one sequence or around either of a pair."""
        bos, eos = self._ends()
        second = [] if token_ids_1 is None else bos + list(token_ids_1) + eos
        return bos + list(token_ids_0) + eos + second

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a special token, or where the ids already have one."""
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise TokenizerError("ids that already have special tokens are one sequence; drop token_ids_1")
            special = self._special_id_set()
            return [int(index in special) for index in token_ids_0]
        bos, eos = ([1] * len(end) for end in self._ends())
        second = [] if token_ids_1 is None else bos + [0] * len(token_ids_1) + eos
        return bos + [0] * len(token_ids_0) + eos + second

    def _ends(self) -> tuple[list[int], list[int]]:
        """The ids put before and after a sequence."""
        found: list[list[int]] = []
        for name, wanted, index in (
            ("bos_token", self.add_bos_token, self.bos_token_id),
            ("eos_token", self.add_eos_token, self.eos_token_id),
        ):
            if wanted and index is None:
                raise TokenizerError(f"add_{name} is set, but this tokenizer has no {name}; set one or turn it off")
            found.append([index] if wanted and index is not None else [])
        return found[0], found[1]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Unpack[FromPretrained]) -> Self:
        """Loads this class from a folder, a file or the hub (owner/name); `arguments` win over what the files say.

        The arguments of transformers that tell how to fetch from its hub mean the same here; without effect on a local
        path.

        Raises:
            ModelNotFoundError: there is no such folder or file.
            TokenizerError: the files cannot be read, are for the other class, or an argument is unknown.
        """
        from puna.tokenizer.files.recipes import folder_arguments
        from puna.tokenizer.load import find

        path, ours = local(pretrained_model_name_or_path, arguments)
        file, kind = find(path, prefer=cls.preferred_file)
        given = merged(folder_arguments(path)[0], Arguments(name_or_path=str(path)), ours)
        return cls.from_source(file, kind, given)

    @classmethod
    @abstractmethod
    def from_source(cls, file: Path, kind: str, arguments: Arguments) -> Self:
        """Builds this class from a tokenizer file of a kind that `load.sniff` found."""

    def save_pretrained(
        self, save_directory: str | Path, legacy_format: bool | None = None, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes the files that this package and transformers read back; returns their paths."""
        from puna.tokenizer.save import save_tokenizer

        return save_tokenizer(self, Path(save_directory), legacy_format, filename_prefix)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"special_tokens={self.special_tokens_map})"
        )
