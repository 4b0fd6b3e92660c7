"""The constructor arguments that both tokenizers share, as types that files and callers fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from puna.errors import TokenizerError
from puna.hub import HubArguments, hub_arguments, local_path
from puna.tokenizer.added_token import AddedToken, TokenLike

NO_LIMIT = int(1e30)
"""`model_max_length` where none is known, as transformers writes it."""

ChatTemplate = str | Mapping[str, str]
"""One template, or several by name ("default", "tool_use", ...)."""


class SharedArguments(TypedDict, total=False):
    """Constructor arguments that both tokenizers hand to their base."""

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
    """Every constructor argument that both tokenizers have, files aside."""

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
    """What `from_pretrained` and `load_tokenizer` pass on, over what the files say."""

    spaces_between_special_tokens: bool
    sp_model_kwargs: Mapping[str, Any] | None
    legacy: bool | None


class FromPretrained(Arguments, HubArguments, total=False):
    """`Arguments`, those of the hub, and `subfolder`, a folder within the path. No code of a model is ever run."""

    subfolder: str
    trust_remote_code: bool | None
    use_auth_token: str | bool | None


def local(path: str | Path, arguments: FromPretrained) -> tuple[Path, Arguments]:
    """The path with `subfolder`, downloaded where it is the hub's, and the arguments without those of the hub."""
    fetching = hub_arguments({"token": arguments.get("use_auth_token"), **arguments})
    place = local_path(path, "tokenizer", arguments.get("subfolder") or "", **fetching)
    return place, checked({name: value for name, value in arguments.items() if name not in _HUB})


def checked(arguments: Mapping[str, Any]) -> Arguments:
    """The same, for users without a type checker.

    Raises:
        TokenizerError: one has an unknown name.
    """
    unknown = sorted(arguments.keys() - Arguments.__optional_keys__)
    if unknown:
        raise TokenizerError(f"{unknown[0]}={arguments[unknown[0]]!r:.60}: no argument of a tokenizer; leave it out")
    return cast(Arguments, dict(arguments))


_HUB = FromPretrained.__optional_keys__ - Arguments.__optional_keys__


def merged(*parts: Arguments) -> Arguments:
    """Arguments of which later ones win."""
    out = Arguments()
    for part in parts:
        out.update(part)
    return out
