"""Writing a tokenizer so that this package and transformers 4.34, 4.57 and 5 read the same ids back.

The page's LlamaTokenizer writes exactly the files of 4.34.1; transformers 5 converts its model in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.errors import TokenizerError
from puna.files import make_folder, write_json
from puna.tokenizer.base import TokenizerBase
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.files.config import ADDED, CONFIG, OWN_IDS, SPECIAL
from puna.tokenizer.slow import LlamaTokenizer


def save_tokenizer(
    tokenizer: TokenizerBase, folder: Path, legacy_format: bool | None, filename_prefix: str | None
) -> tuple[str, ...]:
    """Writes tokenizer_config.json, special_tokens_map.json, and the vocabulary in its forms.

    Args:
        legacy_format: None writes every form there is; True leaves tokenizer.json out, False tokenizer.model.

    Returns:
        The paths written.
    """
    if folder.is_file():
        raise TokenizerError(f"{folder} is a file; give a folder to save into")
    prefix = f"{filename_prefix}-" if filename_prefix else ""
    pipeline = None if legacy_format else _pipeline(tokenizer)
    model = legacy_format is not False and _has_model(tokenizer)
    if pipeline is None and not model:
        form = "tokenizer.json" if legacy_format is False else "SentencePiece model"
        raise TokenizerError(f"legacy_format={legacy_format}: this tokenizer has no {form} to save; use None")
    make_folder(folder)
    paths = [folder / f"{prefix}{CONFIG}", folder / f"{prefix}{SPECIAL}"]
    write_json(paths[0], _configuration(tokenizer))
    write_json(paths[1], _special_tokens(tokenizer))
    beyond = {token: index for token, index in tokenizer.added_tokens_encoder.items() if index >= tokenizer.vocab_size}
    if beyond and model:
        paths.append(folder / f"{prefix}{ADDED}")
        write_json(paths[-1], beyond)
    written = [str(path) for path in paths]
    if model:
        written += tokenizer.save_vocabulary(folder, filename_prefix)
    if pipeline is not None:
        pipeline.save_pipeline(folder / f"{prefix}tokenizer.json")
        written.append(str(folder / f"{prefix}tokenizer.json"))
    return tuple(written)


def _has_model(tokenizer: TokenizerBase) -> bool:
    return isinstance(tokenizer, LlamaTokenizer) or (
        isinstance(tokenizer, LlamaTokenizerFast) and tokenizer.can_save_slow_tokenizer
    )


def _pipeline(tokenizer: TokenizerBase) -> LlamaTokenizerFast | None:
    """The tokenizer as a pipeline, or None for the page's LlamaTokenizer, which writes no tokenizer.json."""
    if isinstance(tokenizer, LlamaTokenizerFast):
        return tokenizer
    assert isinstance(tokenizer, LlamaTokenizer)
    return None if _pipeline_less(tokenizer) else tokenizer.pipeline_twin()


def _configuration(tokenizer: TokenizerBase) -> dict[str, Any]:
    other = {name: value for name, value in tokenizer.other_config.items() if name != OWN_IDS}
    config: dict[str, Any] = {
        **other,
        **_splitting(tokenizer),
        "add_bos_token": tokenizer.add_bos_token,
        "add_eos_token": tokenizer.add_eos_token,
        "added_tokens_decoder": {str(i): token.to_dict() for i, token in tokenizer.added_tokens_decoder.items()},
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "model_input_names": tokenizer.model_input_names,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "tokenizer_class": _class_name(tokenizer),
        "truncation_side": tokenizer.truncation_side,
        "use_default_system_prompt": tokenizer.use_default_system_prompt,
        **tokenizer.special_tokens_map,
    }
    if isinstance(tokenizer, LlamaTokenizer):
        config |= {
            "legacy": tokenizer.legacy,
            "sp_model_kwargs": tokenizer.sp_model_kwargs,
            "spaces_between_special_tokens": tokenizer.spaces_between_special_tokens,
        }
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        config["chat_template"] = [{"name": name, "template": source} for name, source in template.items()]
    elif template is not None:
        config["chat_template"] = template
    return dict(sorted(config.items()))


def _splitting(tokenizer: TokenizerBase) -> dict[str, Any]:
    """How special tokens in a text are read, where it is not the default of what reads the files back.

    SentencePiece's own ids go under a key that transformers ignores: split_special_tokens=True would make its
    release 5 encode a chat template's tokens as text.
    """
    if isinstance(tokenizer, LlamaTokenizer):
        own = tokenizer.behaviour == "sp"
    else:
        own = tokenizer.other_config.get(OWN_IDS) == "sp"
    if own and tokenizer.split_special_tokens:
        return {OWN_IDS: "sp"}
    return {"split_special_tokens": tokenizer.split_special_tokens} if own or tokenizer.split_special_tokens else {}


def _class_name(tokenizer: TokenizerBase) -> str:
    """The class that transformers must read the files with.

    Where there is a tokenizer.json it must not be LlamaTokenizer: transformers 5 then builds a pipeline of its own,
    with other ids for texts that begin with a space.
    """
    return "LlamaTokenizer" if _pipeline_less(tokenizer) else "PreTrainedTokenizerFast"


def _pipeline_less(tokenizer: TokenizerBase) -> bool:
    return isinstance(tokenizer, LlamaTokenizer) and tokenizer.behaviour != "sp"


def _special_tokens(tokenizer: TokenizerBase) -> dict[str, Any]:
    """Names with the tokens' fields; "special" is left out, as older releases do not know it."""

    def fields(token: Any) -> dict[str, Any]:
        return {name: value for name, value in token.to_dict().items() if name != "special"}

    return {
        name: [fields(token) for token in value] if isinstance(value, list) else fields(value)
        for name, value in tokenizer.special_tokens_map_extended.items()
    }
