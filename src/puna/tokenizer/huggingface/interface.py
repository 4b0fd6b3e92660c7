"""Only for compatibility: members of transformers' `PreTrainedTokenizerBase` that nothing in puna needs."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import warnings
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from puna.errors import TokenizerError
from puna.hub.upload import upload_files
from puna.tokenizer.files.config import upload_options
from puna.tokenizer.special import ADDITIONAL, LOGGER, NAMES, AddedToken, AnyTokenizer, StoredToken, TokenLike
from puna.tokenizer.streams import clean_up

if TYPE_CHECKING:
    from puna.tokenizer.calls.batch_encoding import BatchEncoding

_EXAMPLE = "hf-internal-testing/llama-tokenizer"
_URL = f"https://huggingface.co/{_EXAMPLE}/resolve/main/"


class SuperclassInterface(ABC):  # noqa: B024  # TokenizerBase has the abstract methods
    """The part of `TokenizerBase` that only code written against transformers uses."""

    SPECIAL_TOKENS_ATTRIBUTES: ClassVar[list[str]] = [*NAMES, ADDITIONAL]
    pretrained_vocab_files_map: ClassVar[dict[str, dict[str, str]]] = {
        "vocab_file": {_EXAMPLE: f"{_URL}tokenizer.model"},
        "tokenizer_file": {_EXAMPLE: f"{_URL}tokenizer_config.json"},
    }
    pretrained_init_configuration: ClassVar[dict[str, dict[str, Any]]] = {}
    max_model_input_sizes: ClassVar[dict[str, int | None]] = {}
    slow_tokenizer_class: ClassVar[Any] = None
    _auto_class: ClassVar[str | None] = None

    _bos_token = StoredToken()
    _eos_token = StoredToken()
    _unk_token = StoredToken()
    _sep_token = StoredToken()
    _pad_token = StoredToken()
    _cls_token = StoredToken()
    _mask_token = StoredToken()

    init_inputs: tuple[Any, ...] = ()
    verbose = False
    _in_target_context_manager = False
    _pad_token_type_id = 0
    _processor_class: str | None = None

    def __repr__(self: AnyTokenizer) -> str:
        added = "".join(f"\n\t{index}: {token!r}," for index, token in self.added_tokens_decoder.items())
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, is_fast={self.is_fast}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map}, "
            f"clean_up_tokenization_spaces={self.clean_up_tokenization_spaces}), added_tokens_decoder={{{added}\n}}"
        )

    @property
    def pad_token_type_id(self) -> int:
        """The value of padding in `token_type_ids`."""
        return self._pad_token_type_id

    @property
    def max_len_single_sentence(self: AnyTokenizer) -> int:
        """The maximum number of tokens of a text, without special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @max_len_single_sentence.setter
    def max_len_single_sentence(self: AnyTokenizer, value: int) -> None:
        _check_derived("max_len_single_sentence", value, self.model_max_length - self.num_special_tokens_to_add(False))

    @property
    def max_len_sentences_pair(self: AnyTokenizer) -> int:
        """The maximum number of tokens of a pair of texts, without special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    @max_len_sentences_pair.setter
    def max_len_sentences_pair(self: AnyTokenizer, value: int) -> None:
        _check_derived("max_len_sentences_pair", value, self.model_max_length - self.num_special_tokens_to_add(True))

    @property
    def vocab(self: AnyTokenizer) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self.get_vocab()

    @property
    def added_tokens_encoder(self: AnyTokenizer) -> dict[str, int]:
        """Added token to id, ascending by id."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self: AnyTokenizer) -> dict[str, int]:
        """Added token to id."""
        return self.added_tokens_encoder

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Removes spaces before punctuation and English contractions."""
        return clean_up(out_string)

    @property
    def additional_special_tokens_ids(self: AnyTokenizer) -> list[int] | None:
        """The ids of `additional_special_tokens`."""
        ids: list[int] | None = self.convert_tokens_to_ids(self.additional_special_tokens)
        return ids

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self: AnyTokenizer, value: Sequence[int]) -> None:
        tokenizer: AnyTokenizer = self
        tokenizer.additional_special_tokens = [self._id_token(index) for index in value]

    @property
    def extra_special_tokens(self: AnyTokenizer) -> list[str]:
        """`additional_special_tokens`, under its name in transformers 5."""
        return list(self.additional_special_tokens or ())

    @extra_special_tokens.setter
    def extra_special_tokens(self: AnyTokenizer, value: Sequence[TokenLike] | None) -> None:
        tokenizer: AnyTokenizer = self
        tokenizer.additional_special_tokens = list(value or ())

    @property
    def extra_special_tokens_ids(self: AnyTokenizer) -> list[int]:
        """The ids of `extra_special_tokens`."""
        return list(self.convert_tokens_to_ids(list(self.additional_special_tokens or ())))

    def sanitize_special_tokens(self: AnyTokenizer) -> int:
        """Adds the special tokens that the vocabulary lacks; returns their number."""
        return self.add_tokens(self.all_special_tokens_extended, special_tokens=True)

    def _add_tokens(self: AnyTokenizer, new_tokens: Sequence[TokenLike], special_tokens: bool = False) -> int:
        return self.add_tokens(new_tokens, special_tokens=special_tokens)

    def _convert_id_to_token(self: AnyTokenizer, index: int) -> str:
        return self._id_token(int(index))

    def _convert_token_to_id(self: AnyTokenizer, token: str) -> int | None:
        index = self._token_id(token)
        return self.unk_token_id if index is None else index

    _convert_token_to_id_with_added_voc = _convert_token_to_id

    @classmethod
    def convert_added_tokens(cls, obj: Any, save: bool = False, add_type_field: bool = True) -> Any:
        """Converts the tokens in nested values from the form of tokenizer_config.json, or with `save` into it."""
        if isinstance(obj, AddedToken) and save:
            fields = obj.to_dict()
            if add_type_field:
                return fields | {"__type": "AddedToken"}
            return {name: value for name, value in fields.items() if name != "special"}
        if isinstance(obj, (list, tuple)):
            return [cls.convert_added_tokens(item, save, add_type_field) for item in obj]
        if not isinstance(obj, Mapping):
            return obj
        if obj.get("__type") == "AddedToken":
            return AddedToken(**{name: value for name, value in obj.items() if name != "__type"})
        return {name: cls.convert_added_tokens(value, save, add_type_field) for name, value in obj.items()}

    def _switch_to_input_mode(self) -> None:  # noqa: B027
        """Does nothing: the texts of inputs and of targets are encoded in the same way."""

    def _switch_to_target_mode(self) -> None:  # noqa: B027
        """Does nothing: the texts of inputs and of targets are encoded in the same way."""

    @contextlib.contextmanager
    def as_target_tokenizer(self) -> Iterator[None]:
        """Encodes targets in the block; deprecated, like in transformers: use `text_target=`."""
        warnings.warn("as_target_tokenizer is deprecated; use text_target=", UserWarning, stacklevel=3)
        self._switch_to_target_mode()
        self._in_target_context_manager = True
        yield
        self._in_target_context_manager = False
        self._switch_to_input_mode()

    def prepare_seq2seq_batch(
        self: AnyTokenizer,
        src_texts: list[str],
        tgt_texts: list[str] | None = None,
        max_length: int | None = None,
        max_target_length: int | None = None,
        padding: str = "longest",
        return_tensors: str | None = None,
        truncation: bool = True,
        **options: Any,
    ) -> BatchEncoding:
        """Encodes inputs, and targets as `labels`; deprecated, like in transformers: use `text_target=`."""
        warnings.warn("prepare_seq2seq_batch is deprecated; use text_target=", FutureWarning, stacklevel=2)
        options = {name: value for name, value in options.items() if name not in ("src_lang", "tgt_lang")}
        options |= {"padding": padding, "return_tensors": return_tensors, "truncation": truncation}
        longest = self.model_max_length if max_length is None else max_length
        result = self(src_texts, max_length=longest, **options)
        if tgt_texts is not None:
            target_length = longest if max_target_length is None else max_target_length
            result["labels"] = self(text_target=tgt_texts, max_length=target_length, **options)["input_ids"]
        return result

    def encode_message_with_chat_template(
        self: AnyTokenizer,
        message: Mapping[str, Any],
        conversation_history: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """Returns the ids that a message adds to the ids of the conversation before it (transformers 5)."""
        if "add_generation_prompt" in options:
            raise TokenizerError("encode_message_with_chat_template: add the generation prompt separately")
        history = list(conversation_history or ())
        ids: list[int] = self.apply_chat_template([*history, message], tokenize=True, **options)
        before: list[int] = self.apply_chat_template(history, tokenize=True, **options) if history else []
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
        )
        return ids[shared:]

    def _set_processor_class(self, processor_class: str) -> None:
        self._processor_class = processor_class

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoTokenizer") -> None:
        """Remembers the name of an Auto class. Nothing depends on it, because puna executes no code of checkpoints."""
        cls._auto_class = auto_class if isinstance(auto_class, str) else auto_class.__name__

    def push_to_hub(self: AnyTokenizer, repo_id: str, **options: Any) -> Any:
        """Saves the tokenizer into a temporary folder and uploads its files as one commit; returns the CommitInfo.

        Args:
            repo_id: the repository, owner/name; created if needed.
            options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr`, `tags`.
        """
        upload = upload_options({"repo_id": repo_id, **options})
        with tempfile.TemporaryDirectory() as folder:
            names = [Path(path).name for path in self.save_pretrained(folder)]
            return upload_files(folder, names, **upload)


class SlowClass:
    """Class attribute: `LlamaTokenizer`, imported when it is read, because it needs the library sentencepiece."""

    def __get__(self, instance: object, owner: type) -> type:
        name = "CodeLlamaTokenizer" if owner.__name__.startswith("Code") else "LlamaTokenizer"
        return cast(type, getattr(importlib.import_module("puna.tokenizer"), name))


def _check_derived(name: str, value: int, derived: int) -> None:
    if value != derived:
        raise TokenizerError(
            f"{name} = {value}: it follows from model_max_length and is {derived}; set model_max_length"
        )
    LOGGER.warning("%s follows from model_max_length; setting it has no effect", name)
