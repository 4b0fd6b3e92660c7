"""Types and checks of the arguments of tokenizers: constructor arguments, texts and token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from puna.errors import TokenizerError, show
from puna.hub import HubArguments, choose_token, hub_arguments, local_path
from puna.tokenizer.special import AddedToken, TokenLike

if TYPE_CHECKING:
    from puna.tokenizer.calls.encoding import Text

NO_LIMIT = int(1e30)
"""`model_max_length` if no limit is known; transformers writes the same number."""

ChatTemplate = str | Mapping[str, str] | Sequence[Mapping[str, str]]
"""One template, or several by name ("default", "tool_use", ...), or a list of {"name": ..., "template": ...}."""

Behaviour = Literal["sp", "hf-legacy", "hf"]
"""How `LlamaTokenizer` reads special tokens and spaces; see slow.py."""


class SharedArguments(TypedDict, total=False):
    """Constructor arguments that both tokenizers pass to their base class."""

    sep_token: TokenLike | None
    cls_token: TokenLike | None
    mask_token: TokenLike | None
    additional_special_tokens: Sequence[TokenLike] | None
    model_max_length: int | None
    padding_side: str | None
    truncation_side: str
    model_input_names: Sequence[str]
    split_special_tokens: bool | None
    chat_template: ChatTemplate | None
    name_or_path: str
    other_config: Mapping[str, Any]


class CommonArguments(SharedArguments, total=False):
    """All constructor arguments that both tokenizers have, except files."""

    unk_token: TokenLike | None
    bos_token: TokenLike | None
    eos_token: TokenLike | None
    pad_token: TokenLike | None
    added_tokens_decoder: Mapping[int, AddedToken] | None
    add_bos_token: bool
    add_eos_token: bool
    clean_up_tokenization_spaces: bool
    use_default_system_prompt: bool
    from_slow: bool


class Arguments(CommonArguments, total=False):
    """The arguments of `from_pretrained` and `load_tokenizer`, which override the files."""

    spaces_between_special_tokens: bool
    sp_model_kwargs: Mapping[str, Any] | None
    legacy: bool | None


class FromPretrained(Arguments, HubArguments, total=False):
    """`Arguments`, options of the hub, and `subfolder`, relative to the path. A model's code is never executed."""

    subfolder: str
    trust_remote_code: bool | None
    use_auth_token: str | bool | None


_IGNORED = frozenset(
    ("use_fast", "proxies", "resume_download", "mirror", "config", "tokenizer_type", "code_revision", "_commit_hash",
     "_from_auto", "gguf_file", "trust_remote_code", "use_auth_token", "subfolder")
)  # fmt: skip
"""Arguments of transformers' `from_pretrained` that are not settings of a tokenizer."""


def split_hub_arguments(path: str | Path, arguments: Mapping[str, Any]) -> tuple[Path, Arguments, dict[str, Any]]:
    """Returns the local path of a model, downloaded first if it is on the hub, and the arguments of a constructor.

    Returns:
        The path; the arguments that tokenizers have; the others, which transformers keeps in `init_kwargs`.
    """
    token = choose_token(arguments.get("token"), arguments.get("use_auth_token"))
    hub_options = hub_arguments({**arguments, "token": token})
    folder = local_path(path, "tokenizer", arguments.get("subfolder") or "", **hub_options)
    if arguments.get("gguf_file"):
        folder = folder / arguments["gguf_file"]
    rest = {
        name: v for name, v in arguments.items() if name not in _IGNORED and name not in HubArguments.__optional_keys__
    }
    known = Arguments.__optional_keys__
    constructor = cast(Arguments, {name: value for name, value in rest.items() if name in known})
    if "max_len" in rest:
        constructor.setdefault("model_max_length", rest.pop("max_len"))
    return folder, constructor, {name: value for name, value in rest.items() if name not in known}


def check_names(arguments: Mapping[str, Any]) -> Arguments:
    """Returns the arguments unchanged if tokenizers have arguments of these names, which type checkers check too.

    Raises:
        TokenizerError: a name is unknown.
    """
    unknown = sorted(arguments.keys() - Arguments.__optional_keys__)
    if unknown:
        raise TokenizerError(
            f"{unknown[0]}={show(arguments[unknown[0]])}: a tokenizer has no such argument; remove it from the call"
        )
    return cast(Arguments, dict(arguments))


def common_arguments(arguments: Arguments) -> CommonArguments:
    """Returns the arguments without those that only `LlamaTokenizer` has."""
    return cast(CommonArguments, {k: v for k, v in arguments.items() if k in CommonArguments.__optional_keys__})


def split_batch(text: Any, pair: Any, words: bool) -> tuple[list[tuple[Any, Any]], bool]:
    """Distinguishes one input from a batch: returns texts with their pairs (or None), and whether there is a batch."""
    is_list = isinstance(text, (list, tuple))
    if not is_list and not isinstance(text, str):
        raise TokenizerError(f"a {type(text).__name__} is not a text; pass a string or a list of strings")
    if not is_list or (words and not (text and isinstance(text[0], (list, tuple)))):
        return [(text, pair)], False
    if pair is None:
        return [split_pair(item, words) for item in text], True
    if not isinstance(pair, (list, tuple)) or len(pair) != len(text):
        count = f"has {len(pair)} texts" if isinstance(pair, (list, tuple)) else "is one text"
        raise TokenizerError(f"text_pair {count}, but text has {len(text)}; pass a list of {len(text)} texts")
    return list(zip(text, pair, strict=True)), True


def split_pair(item: Any, words: bool) -> tuple[Any, Any]:
    """Returns the two texts of an item of a batch if it is a list or tuple of two, else the item and None."""
    if not isinstance(item, (list, tuple)) or not item or isinstance(item[0], int):
        return item, None
    if words and not isinstance(item[0], (list, tuple)):
        return item, None
    if len(item) != 2:
        raise TokenizerError(f"{show(item)} has {len(item)} items; in a batch, a list or tuple of two texts is a pair")
    return item[0], item[1]


def check_text(text: object, words: bool) -> Text:
    """Returns a text that can be encoded: a string, or a list of words, tokens or token ids.

    Raises:
        TokenizerError: the text has another type, or characters that UTF-8 cannot represent.
    """
    if isinstance(text, str):
        return _check_string(text)
    if isinstance(text, (list, tuple)):
        if text and not words and not isinstance(text[0], str):
            return as_ids(text)
        return [_check_string(word) for word in text]
    raise TokenizerError(f"{show(text)} is a {type(text).__name__}; only strings can be tokenized")


def _check_string(text: object) -> str:
    """Returns `text` if it is a string that UTF-8 can represent, else raises TokenizerError."""
    if not isinstance(text, str):
        raise TokenizerError(f"{show(text)} is a {type(text).__name__}; only strings can be tokenized")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise TokenizerError(
                f"character {exc.start} is the lone surrogate U+{ord(text[exc.start]):04X}, which is not a character; "
                "clean the text with text.encode('utf-8', 'replace').decode()"
            ) from exc
    return text


def as_ids(value: Any) -> list[int]:
    """Converts one sequence of ids to a list of int. Accepts an integer, a list, an array or a tensor.

    Raises:
        TokenizerError: an item is not an integer.
    """
    items = value if isinstance(value, (list, tuple, int)) else _as_list(value)
    if isinstance(items, int):
        items = [items]
    try:
        return [operator.index(item) for item in items]
    except TypeError as exc:
        raise TokenizerError(f"token ids must be integers ({exc}); use batch_decode for several sequences") from exc


def _as_list(value: Any) -> Any:
    try:
        return value.tolist()
    except AttributeError:
        raise TokenizerError(
            f"a {type(value).__name__} is not a sequence of token ids; pass an integer, a list, an array or a tensor"
        ) from None


def check_string(text: Any) -> None:
    """Raises TokenizerError unless an argument is a string."""
    if not isinstance(text, str):
        raise TokenizerError(f"text is {show(text)}; it must be a string")


def check_vocabulary(model_proto: Any, sp_model_kwargs: Any, added_tokens_decoder: Any) -> None:
    """Raises TokenizerError if an argument of `LlamaTokenizer` has the wrong type."""
    if model_proto is not None and not isinstance(model_proto, bytes):
        raise TokenizerError(f"model_proto is {show(model_proto)}; it must be the bytes of a SentencePiece model")
    if sp_model_kwargs is not None and not isinstance(sp_model_kwargs, Mapping):
        raise TokenizerError(f"sp_model_kwargs is {show(sp_model_kwargs)}; it must be a dictionary")
    check_added_tokens(added_tokens_decoder)


def check_added_tokens(added_tokens_decoder: Any) -> None:
    """Raises TokenizerError unless the argument is a dictionary from ids to added tokens, or None."""
    tokens = added_tokens_decoder or {}
    valid = isinstance(tokens, Mapping) and all(
        isinstance(index, int) and hasattr(token, "content") for index, token in tokens.items()
    )
    if not valid:
        raise TokenizerError(
            f"added_tokens_decoder is {show(added_tokens_decoder)}; it must be a dictionary from ids to AddedTokens"
        )


def check_training(texts: Any, vocab_size: Any, length: Any, special: Any, names: Any) -> None:
    """Raises TokenizerError if an argument of `train_new_from_iterator` has the wrong type."""
    if not isinstance(texts, Iterable) or isinstance(texts, str | bytes):
        raise TokenizerError(f"text_iterator is {show(texts)}; it must be a list or an iterator of texts")
    for name, value in (("vocab_size", vocab_size), ("length", length)):
        if (value is not None or name == "vocab_size") and (not isinstance(value, int) or not 0 <= value < 2**31):
            raise TokenizerError(f"{name} is {show(value)}; it must be an integer, 0 or greater")
    if special is not None and not isinstance(special, list | tuple):
        raise TokenizerError(f"new_special_tokens is {show(special)}; it must be a list of tokens")
    if names is not None and not isinstance(names, Mapping):
        raise TokenizerError(f"special_tokens_map is {show(names)}; it must be a dictionary from old to new tokens")
