"""The small files around a tokenizer: tokenizer_config.json, special_tokens_map.json, added_tokens.json, templates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from puna.errors import TokenizerError
from puna.files import read_json
from puna.tokenizer.added_token import AddedToken, added_token_from_json
from puna.tokenizer.arguments import NO_LIMIT, Arguments
from puna.tokenizer.special import ADDITIONAL, NAMES

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
OWN_IDS = "behaviour"
"""Our key of tokenizer_config.json: "sp" says that the ids are SentencePiece's own, so that special tokens written in a
text are text. `load_tokenizer` heeds it; transformers ignores it."""

_FLAGS = (
    "add_bos_token",
    "add_eos_token",
    "clean_up_tokenization_spaces",
    "legacy",
    "spaces_between_special_tokens",
    "split_special_tokens",
    "use_default_system_prompt",
)
_SIDES = ("padding_side", "truncation_side")
_OTHERS = ("added_tokens_decoder", "chat_template", "model_input_names", "model_max_length", "sp_model_kwargs")
_NOT_KEPT = frozenset(
    ("tokenizer_class", "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file", "tokenizer_object",
     "from_slow", "backend", "is_local", "local_files_only", "init_inputs", "auto_map", "extra_special_tokens")
)  # fmt: skip
"""Keys that speak of the saving process, or that we do not carry over."""


@dataclass
class FolderConfig:
    """What the small files say.

    Attributes:
        arguments: constructor arguments.
        tokenizer_class: the class named, or "".
    """

    arguments: Arguments = field(default_factory=Arguments)
    tokenizer_class: str = ""


def read_folder(folder: Path) -> FolderConfig:
    """Reads the small files of a folder, each optional.

    Raises:
        TokenizerError: one of them is damaged, or has a value of the wrong type.
    """
    path = folder / CONFIG
    raw = read_json(path, TokenizerError) if path.is_file() else {}
    values: dict[str, Any] = {name: _typed(raw, name, path, bool) for name in _FLAGS if raw.get(name) is not None}
    values |= {name: _typed(raw, name, path, str) for name in _SIDES if raw.get(name) is not None}
    if raw.get("model_max_length") is not None:
        values["model_max_length"] = _length(raw["model_max_length"], path)
    if raw.get("sp_model_kwargs"):
        values["sp_model_kwargs"] = _typed(raw, "sp_model_kwargs", path, dict)
    if raw.get("model_input_names") is not None:
        values["model_input_names"] = _typed(raw, "model_input_names", path, list)
    values |= _tokens(raw, folder)
    template = read_templates(folder, raw.get("chat_template"))
    if template is not None:
        values["chat_template"] = template
    known = {*values, *NAMES, *_FLAGS, *_SIDES, *_OTHERS, ADDITIONAL} | _NOT_KEPT
    values["other_config"] = {name: value for name, value in raw.items() if name not in known}
    values["name_or_path"] = str(folder)
    named = raw.get("tokenizer_class")
    return FolderConfig(cast(Arguments, values), named if isinstance(named, str) else "")


def _tokens(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Named, additional and added tokens. As in transformers, added_tokens_decoder makes the older files moot."""
    decoder: dict[int, AddedToken] = {}
    merged = dict(raw)
    if raw.get("added_tokens_decoder") is not None:
        where = f"{folder / CONFIG}: added_tokens_decoder"
        for index, token in _typed(raw, "added_tokens_decoder", folder / CONFIG, dict).items():
            decoder[_index(index, where)] = added_token_from_json(token, where)
    elif (folder / SPECIAL).is_file():
        merged |= read_json(folder / SPECIAL, TokenizerError)
    by_text = {token.content: token for token in decoder.values()}

    def one(value: object, name: str) -> AddedToken:
        read = added_token_from_json(value, f"{folder}: {name}", special=True)
        return by_text.get(read.content, read) if isinstance(value, str) else read

    values: dict[str, Any] = {name: one(merged[name], name) for name in NAMES if merged.get(name) is not None}
    listed = merged.get(ADDITIONAL) or merged.get("extra_special_tokens") or []
    if not isinstance(listed, (list, dict)):
        raise TokenizerError(f"{folder}: {ADDITIONAL} = {listed!r:.60}; a list of tokens is needed")
    if listed:
        values[ADDITIONAL] = [one(v, ADDITIONAL) for v in (listed.values() if isinstance(listed, dict) else listed)]
    if not decoder and (folder / ADDED).is_file():
        special = {t.content for t in [*(values[n] for n in NAMES if n in values), *values.get(ADDITIONAL, [])]}
        for text, index in read_json(folder / ADDED, TokenizerError).items():
            decoder[_index(index, str(folder / ADDED))] = added_token_from_json(text, ADDED, text in special)
    if decoder:
        values["added_tokens_decoder"] = decoder
    return values


def read_templates(folder: Path, configured: object) -> str | dict[str, str] | None:
    """The chat template or templates; chat_template.jinja wins over the JSON files."""
    if configured is None and (folder / "chat_template.json").is_file():
        configured = read_json(folder / "chat_template.json", TokenizerError).get("chat_template")
    if isinstance(configured, list):
        try:
            configured = {str(item["name"]): str(item["template"]) for item in configured}
        except (TypeError, KeyError) as exc:
            raise TokenizerError(f"{folder}: chat_template is a list; each item needs 'name' and 'template'") from exc
    if configured is not None and not isinstance(configured, (str, dict)):
        raise TokenizerError(
            f"{folder}: chat_template = {configured!r:.60}; a string or a list of named ones is needed"
        )
    more = {path.stem: _text(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    main = folder / "chat_template.jinja"
    if main.is_file():
        configured = {"default": _text(main), **more} if more else _text(main)
    elif more:
        configured = ({"default": configured} if isinstance(configured, str) else configured or {}) | more
    return configured


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise TokenizerError(f"{path}: not UTF-8 ({exc}); download the file again") from exc


_WANTED = {bool: "true or false", str: "a string", list: "a list of strings", dict: "an object"}


def _typed(raw: Mapping[str, Any], name: str, path: Path, kind: type[Any]) -> Any:
    """The value of a key, checked; items of a list are to be strings."""
    value = raw[name]
    if not isinstance(value, kind) or (kind is list and not all(isinstance(item, str) for item in value)):
        raise TokenizerError(f"{path}: {name} = {value!r:.60}; {_WANTED[kind]} is needed")
    return value


def _length(value: object, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < 1:
        raise TokenizerError(f"{path}: model_max_length = {value!r:.60}; a positive number is needed")
    return NO_LIMIT if value > NO_LIMIT else int(value)


def _index(value: object, where: str) -> int:
    try:
        index = int(str(value))
    except ValueError:
        index = -1
    if index < 0:
        raise TokenizerError(f"{where}: {value!r:.60} is no token id")
    return index
