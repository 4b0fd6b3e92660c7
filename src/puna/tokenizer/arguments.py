"""The constructor arguments that both tokenizers share, as types that files and callers fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

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


def merged(*parts: Arguments) -> Arguments:
    """Arguments of which later ones win."""
    out = Arguments()
    for part in parts:
        out.update(part)
    return out
