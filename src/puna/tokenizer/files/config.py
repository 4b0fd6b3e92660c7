"""Configuration files: tokenizer_config.json, special_tokens_map.json, added_tokens.json, and files of templates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from puna.errors import TokenizerError, show
from puna.files import JSON_LIMIT, atomic_write, folder_path, has_file, make_folder, read_file, read_json, write_json
from puna.hub.upload import unknown_arguments, upload_arguments, upload_files
from puna.tokenizer.arguments import NO_LIMIT, Arguments
from puna.tokenizer.special import ADDITIONAL, EXTRA, LOGGER, NAMES, AddedToken, AnyTokenizer, added_token_from_json

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
OWN_IDS = "behaviour"
"""A key of tokenizer_config.json that only puna writes. "sp" means SentencePiece's own ids: special tokens that a text
contains are plain text. `load_tokenizer` reads it; transformers ignores it."""

_FILL = "fill_token"
"""CodeLlama's marker for the gap in a text. Its tokenizer removes the marker, so it is not a token."""

_FLAGS = (
    "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "legacy", "spaces_between_special_tokens",
    "split_special_tokens", "use_default_system_prompt",
)  # fmt: skip
_SIDES = ("padding_side", "truncation_side")
_SAVED_ATTRIBUTES = (
    "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "model_input_names", "model_max_length",
    "padding_side", "truncation_side", "use_default_system_prompt",
)  # fmt: skip
_ENDS = ("bos_token", "eos_token")
"""Tokens that a file can remove with null, as in transformers 4.34, unless the tokenizer has to add them to texts."""
_OTHER_ARGUMENTS = ("added_tokens_decoder", "chat_template", "model_input_names", "model_max_length", "sp_model_kwargs")
_NOT_SAVED = frozenset(
    ("tokenizer_class", "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file", "tokenizer_object",
     "from_slow", "backend", "is_local", "local_files_only", "init_inputs", "auto_map", EXTRA)
)  # fmt: skip
"""Keys that are not copied to saved files, such as keys that describe the saving process."""


def read_folder(folder: Path) -> tuple[Arguments, str]:
    """Reads the configuration files of a folder. All of them are optional.

    Returns:
        Constructor arguments, and `tokenizer_class` of tokenizer_config.json ("" if missing).

    Raises:
        TokenizerError: a file is damaged, or has a value of the wrong type.
    """
    path = folder / CONFIG
    raw = read_json(path, TokenizerError) if has_file(path, TokenizerError) else {}
    types = dict.fromkeys(_FLAGS, bool) | dict.fromkeys(_SIDES, str) | {"model_input_names": list}
    values = {name: _typed(raw, name, path, kind) for name, kind in types.items() if raw.get(name) is not None}
    if raw.get("model_max_length") is not None:
        values["model_max_length"] = _length(raw["model_max_length"], path)
    if raw.get("sp_model_kwargs"):
        values["sp_model_kwargs"] = _typed(raw, "sp_model_kwargs", path, dict)
    values |= {n: None for n in _ENDS if n in raw and raw[n] is None and raw.get(f"add_{n}", n == _ENDS[0]) is False}
    values |= _tokens(raw, folder)
    template = _templates(folder, raw.get("chat_template"))
    if template is not None:
        values["chat_template"] = template
    handled_keys = {*NAMES, *_FLAGS, *_SIDES, *_OTHER_ARGUMENTS, ADDITIONAL} | _NOT_SAVED
    values["other_config"] = {name: value for name, value in raw.items() if name not in handled_keys}
    values["name_or_path"] = str(folder)
    tokenizer_class = raw.get("tokenizer_class")
    return cast(Arguments, values), tokenizer_class if isinstance(tokenizer_class, str) else ""


def _tokens(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Reads named, additional and added tokens. As in transformers, added_tokens_decoder replaces the older files."""
    decoder: dict[int, AddedToken] = {}
    sources = [raw]
    if raw.get("added_tokens_decoder") is not None:
        where = f"{folder / CONFIG}: added_tokens_decoder"
        for index, fields in _typed(raw, "added_tokens_decoder", folder / CONFIG, dict).items():
            decoder[_index(index, where)] = added_token_from_json(fields, where)
    elif has_file(folder / SPECIAL, TokenizerError):
        sources.append(read_json(folder / SPECIAL, TokenizerError))
    by_text = {added.content: added for added in decoder.values()}
    merged = dict(itertools.chain.from_iterable(source.items() for source in sources))

    def token(value: object, name: str) -> AddedToken:
        result = added_token_from_json(value, f"{folder}: {name}", special=True)
        return by_text.get(result.content, result) if isinstance(value, str) else result

    values: dict[str, Any] = {name: token(merged[name], name) for name in NAMES if merged.get(name) not in (None, "")}
    if items := [token(value, name) for name, value in _more_special_tokens(sources, folder) if value != ""]:
        values[ADDITIONAL] = list({item.content: item for item in items}.values())
    if not decoder and has_file(folder / ADDED, TokenizerError):
        special = {t.content for t in [*(values[n] for n in NAMES if n in values), *values.get(ADDITIONAL, [])]}
        for text, index in read_json(folder / ADDED, TokenizerError).items():
            decoder[_index(index, str(folder / ADDED))] = added_token_from_json(text, ADDED, text in special)
    if decoder:
        values["added_tokens_decoder"] = decoder
    return values


def _more_special_tokens(sources: list[dict[str, Any]], folder: Path) -> Iterator[tuple[str, object]]:
    """Yields the special tokens without a standard name: the key and the token.

    Tokens outside the vocabulary get new ids in the order of transformers 5.23: first tokens with their own key, such
    as image_token, then lists. (transformers ignores `ADDITIONAL` if `EXTRA` is a list of tokens.)
    """
    for source in sources:
        for name, value in source.items():
            if name.endswith("_token") and name not in (*NAMES, _FILL) and _is_token(value, source is sources[0]):
                yield name, value
    for name in (EXTRA, "model_specific_special_tokens"):
        for source in sources:
            if isinstance(items := source.get(name), dict):
                yield from ((name, value) for value in items.values())
    for source in sources:
        for name in (EXTRA, ADDITIONAL):
            items = source.get(name) or []
            if not isinstance(items, (list, dict)):
                raise TokenizerError(f"{folder}: {name} = {show(items)}; expected a list of tokens")
            if isinstance(items, list):
                yield from ((name, value) for value in items)
            elif name == ADDITIONAL:
                yield from ((name, value) for value in items.values())


def _is_token(value: object, needs_type: bool) -> bool:
    """Whether a value of a key such as image_token is a token; only special_tokens_map.json may leave out the type."""
    return bool(value) and (
        isinstance(value, str) or (isinstance(value, dict) and ("__type" in value or not needs_type))
    )


def _templates(folder: Path, templates: object) -> str | dict[str, str] | None:
    """Reads the chat template or templates; chat_template.jinja overrides the JSON files."""
    if templates is None and has_file(folder / "chat_template.json", TokenizerError):
        templates = read_json(folder / "chat_template.json", TokenizerError).get("chat_template")
    if isinstance(templates, list):
        try:
            templates = {str(item["name"]): str(item["template"]) for item in templates}
        except (TypeError, KeyError) as exc:
            raise TokenizerError(f"{folder}: chat_template is a list; each item needs 'name' and 'template'") from exc
    if templates is not None and not isinstance(templates, (str, dict)):
        raise TokenizerError(
            f"{folder}: chat_template = {show(templates)}; expected a string or a list of named templates"
        )
    more_folder = folder / "additional_chat_templates"
    if not more_folder.is_dir():
        has_file(more_folder, TokenizerError)  # refuses a link to a missing folder
    paths = [path for path in sorted(more_folder.glob("*.jinja")) if has_file(path, TokenizerError)]
    more = {path.stem: _text(path) for path in paths}
    main = folder / "chat_template.jinja"
    if has_file(main, TokenizerError):
        templates = {"default": _text(main), **more} if more else _text(main)
    elif more:
        templates = ({"default": templates} if isinstance(templates, str) else templates or {}) | more
    return templates


def _text(path: Path) -> str:
    try:
        return read_file(path, TokenizerError, JSON_LIMIT).decode()
    except UnicodeDecodeError as exc:
        raise TokenizerError(f"{path}: not UTF-8 ({exc}); download the file again") from exc


_EXPECTED = {bool: "true or false", str: "a string", list: "a list of strings", dict: "an object"}


def _typed(raw: Mapping[str, Any], name: str, path: Path, kind: type[Any]) -> Any:
    """Returns the value of a key if it has the type `kind`; items of a list must be strings."""
    value = raw[name]
    if not isinstance(value, kind) or (kind is list and not all(isinstance(item, str) for item in value)):
        raise TokenizerError(f"{path}: {name} = {show(value)}; expected {_EXPECTED[kind]}")
    return value


def _length(value: object, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:  # also refuses NaN
        raise TokenizerError(f"{path}: model_max_length = {show(value)}; expected a positive number")
    return NO_LIMIT if value > NO_LIMIT else int(value)


def _index(value: object, where: str) -> int:
    try:
        index = int(str(value))
    except ValueError:
        index = -1
    if index < 0:
        raise TokenizerError(f"{where}: {show(value)} is not a token id")
    return index


def save_pretrained(
    self: AnyTokenizer,
    save_directory: str | Path,
    legacy_format: bool | None = None,
    filename_prefix: str | None = None,
    push_to_hub: bool = False,
    **options: Any,
) -> tuple[str, ...]:
    """Writes files from which puna and transformers 4.34, 4.57 and 5 load a tokenizer with the same ids.

    There is one exception. A `LlamaTokenizer` with a behaviour other than "sp" writes exactly the files of transformers
    4.34.1; from these, transformers 5 builds a pipeline with other ids for some texts.

    Args:
        legacy_format: True omits tokenizer.json, False omits tokenizer.model; None writes both if possible.
        filename_prefix: precedes the names of the files, with a hyphen.
        push_to_hub: also upload the files to the repository `repo_id`, by default the name of the folder.
        options: `save_jinja_files=True` writes chat templates to separate files; the others are those of
            `push_to_hub`, such as `repo_id`, `token` and `commit_message`.

    Returns:
        The paths of the files.
    """
    folder = folder_path(save_directory)
    if folder.is_file():
        raise TokenizerError(f"{folder} is a file; give a folder to save into")
    pipeline = None if legacy_format else self._pipeline_json()
    has_model = legacy_format is not False and self._has_model
    if pipeline is None and not has_model:
        form = "tokenizer.json" if legacy_format is False else "SentencePiece model"
        raise TokenizerError(f"legacy_format={legacy_format}: this tokenizer has no {form} to save; use None")
    contents = {CONFIG: _config_json(self, pipeline), SPECIAL: _special_tokens_json(self.special_tokens_map_extended)}
    new_ids = {token.content: index for index, token in self.added_tokens_decoder.items() if index >= self.vocab_size}
    if new_ids and has_model:
        contents[ADDED] = new_ids
    upload = upload_options(options)
    make_folder(folder)
    prefix = f"{filename_prefix}-" if filename_prefix else ""
    if options.get("save_jinja_files"):
        _write_templates(contents[CONFIG].pop("chat_template", None), folder, prefix)
    paths = [str(folder / f"{prefix}{name}") for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_json(Path(path), content)
    if has_model:
        paths += self.save_vocabulary(folder, filename_prefix)
    if pipeline is not None:
        paths.append(str(folder / f"{prefix}tokenizer.json"))
        write_json(Path(paths[-1]), pipeline)
    if push_to_hub:
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.jinja"))]
        upload = {"repo_id": folder.resolve().name, **upload}
        upload_files(folder, [*(Path(path).name for path in paths), *names], **upload)
    return tuple(paths)


def upload_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `upload_files` among those of `push_to_hub`; logs unknown names."""
    if unknown := unknown_arguments(options):
        LOGGER.warning("Keyword arguments %s not recognized.", unknown)
    known = {name: value for name, value in options.items() if name not in unknown}
    return {"commit_message": "Upload tokenizer", **upload_arguments(known)}


def _write_templates(templates: Any, folder: Path, prefix: str) -> None:
    """Writes one template to chat_template.jinja, and others to additional_chat_templates/NAME.jinja."""
    named = [{"name": "default", "template": templates}] if isinstance(templates, str) else templates or []
    for item in named:
        more = make_folder(folder / f"{prefix}additional_chat_templates") if item["name"] != "default" else folder
        name = f"{prefix}chat_template.jinja" if item["name"] == "default" else f"{item['name']}.jinja"
        if Path(name).name != name:
            raise TokenizerError(f"chat template {item['name']!r}: a file cannot have this name; rename the template")
        with atomic_write(more / name) as file:
            file.write(item["template"].encode())


def _config_json(tokenizer: AnyTokenizer, pipeline: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json.

    Args:
        pipeline: the content of the tokenizer.json that is saved with it. Both must give an added token the same
            settings, since readers use those of tokenizer_config.json.
    """
    added = {index: token.to_dict() for index, token in tokenizer.added_tokens_decoder.items()}
    for token in pipeline["added_tokens"] if pipeline is not None else ():
        if token["id"] in added:
            added[token["id"]] |= {name: value for name, value in token.items() if name != "id"}
    config = {name: value for name, value in tokenizer.other_config.items() if name != OWN_IDS}
    # transformers 5 would encode the special tokens of a chat template as text if split_special_tokens were true.
    if tokenizer._has_own_ids and tokenizer.split_special_tokens:
        config[OWN_IDS] = "sp"
    elif tokenizer._has_own_ids or tokenizer.split_special_tokens:
        config["split_special_tokens"] = tokenizer.split_special_tokens
    config |= {name: getattr(tokenizer, name) for name in _SAVED_ATTRIBUTES}
    config["added_tokens_decoder"] = {str(index): fields for index, fields in added.items()}
    config |= tokenizer._class_config() | dict.fromkeys(_ENDS) | tokenizer.special_tokens_map
    if pipeline is None and config["tokenizer_class"] == "PreTrainedTokenizerFast":
        config["tokenizer_class"] = "LlamaTokenizer"  # the other class reads only tokenizer.json
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        config["chat_template"] = [{"name": name, "template": source} for name, source in template.items()]
    elif template is not None:
        config["chat_template"] = template
    return {name: _json_value(value) for name, value in sorted(config.items())}


def _json_value(value: Any) -> Any:
    """Returns tokens in the form of transformers, and other values unchanged."""
    return {**value.to_dict(), "__type": "AddedToken"} if isinstance(value, AddedToken) else value


def _special_tokens_json(tokens: Mapping[str, AddedToken | list[AddedToken]]) -> dict[str, Any]:
    """Returns the content of special_tokens_map.json, without "special", a field unknown to old transformers."""

    def fields(token: AddedToken) -> dict[str, Any]:
        return {name: value for name, value in token.to_dict().items() if name != "special"}

    return {
        name: [fields(token) for token in value] if isinstance(value, list) else fields(value)
        for name, value in tokens.items()
    }
