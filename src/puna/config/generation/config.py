"""`GenerationConfig`: settings of text generation, with the fields, defaults and files of Hugging Face's class."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from puna.config.checks import absent_if_minus_one, minus_one_notes
from puna.config.generation.checks import check_relations, minor_issues
from puna.config.generation.fields import (
    DEFAULTS,
    METADATA,
    TOKEN_IDS,
    check_field,
    check_sampling,
    convert_value,
    id_list,
    plain,
)
from puna.config.generation.mode import GenerationMode, select_mode
from puna.config.generation.watermarks import read_watermarking_config
from puna.config.llama import LlamaConfig
from puna.errors import ArgumentError, ConfigError, show
from puna.files import json_bytes, make_folder, path_argument, read_json, reading_errors, write_json
from puna.hub import file_arguments, local_path
from puna.hub.upload import upload_arguments, upload_files

Self = TypeVar("Self", bound="GenerationConfig")

_FILE = "generation_config.json"

_INTERNAL = ("_notes", "_unusable", "_assigned", "_original_object_hash", "_derived_hash", "_commit_hash")
"""Attributes that are not part of the settings."""


class GenerationConfig:
    """Default settings of `generate()`. Only fields that differ from the defaults are written to files.

    All fields of transformers 4.34 to 5.23 are attributes; `generation_fields.py` lists the others and their defaults.
    None disables a filter or penalty; for any other field, None means its default.

    Args:
        max_length: maximum number of tokens in prompt and answer together; `max_new_tokens` takes precedence.
        max_new_tokens: maximum number of tokens in the answer.
        min_length, min_new_tokens: minimum number of tokens; eos tokens are forbidden until then.
        max_time: seconds after which no further token is generated.
        stop_strings: texts that end an answer; `generate()` then also needs the `tokenizer`.
        do_sample: sample instead of choosing the most likely token.
        num_beams: number of beams of a beam search; 1 means no beam search.
        early_stopping: whether a beam search ends with `num_beams` complete texts; "never" waits for the best ones.
        num_return_sequences: answers per prompt.
        use_cache: keep keys and values between steps.
        temperature: divides the logits; 0 chooses the most likely token.
        top_k: sample from the k most likely tokens; 0, or -1 as in vLLM, means from all.
        top_p: sample from the smallest set of most likely tokens with at least this total probability.
        min_p: drop tokens whose probability is below this fraction of the highest one.
        repetition_penalty: divides the positive logits of tokens already in the text, multiplies the negative ones.
        pad_token_id, bos_token_id: token ids.
        eos_token_id: the id or ids that end a text.
        return_dict_in_generate: return an output object with the parts that `output_scores`, `output_logits`,
            `output_attentions` and `output_hidden_states` select.
        fields: the fields above and all others. Fields with other names become attributes and are saved, too.

    Raises:
        ConfigError: if a value is out of range, or fields contradict each other.

    Warns:
        UserWarning: if a setting has no effect because of another one.
    """

    _assigned: tuple[str, ...]
    _original_object_hash: int | None  # when it was read
    _derived_hash: int | None  # when it was derived from the configuration of a model

    def __init__(self, /, **fields: Any) -> None:
        self._assign(fields)
        check_relations(vars(self))
        self._warn(None)

    def _assign(self, fields: Mapping[str, Any]) -> None:
        """Sets all fields: those in `fields`, and the defaults of the others."""
        self._notes: list[str] = []
        self._unusable: list[str] = []
        self._original_object_hash = self._derived_hash = None
        for name, default in {**DEFAULTS, **METADATA}.items():
            object.__setattr__(self, name, copy.copy(default))
        self._assigned = ()
        from_model = bool(fields.get("_from_model_config"))  # a model's configuration has many other fields
        for name, value in fields.items():
            if name in DEFAULTS or name in METADATA or not from_model:
                setattr(self, name, absent_if_minus_one(value) if name in TOKEN_IDS else value)
        for name in DEFAULTS:
            check_field(name, getattr(self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, read_watermarking_config(value) if name == "watermarking_config" else value)
        if not name.startswith("_") and name not in self._assigned:
            object.__setattr__(self, "_assigned", (*self._assigned, name))  # copies share the earlier tuple

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Returns a field."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(json.dumps(plain(self._identity()), sort_keys=True, default=repr))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string(ignore_metadata=True)}"

    def _identity(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _INTERNAL and name not in METADATA}

    @property
    def extra(self) -> dict[str, Any]:
        """The attributes that are not fields of transformers."""
        return {name: value for name, value in self._identity().items() if name not in DEFAULTS}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on values of a file that were converted to another type, without a change of their meaning."""
        return tuple(self._notes)

    @property
    def unusable(self) -> tuple[str, ...]:
        """Notes on settings of a file that have no valid value, so that their defaults are used."""
        return tuple(self._unusable)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text; empty if there are none."""
        return tuple(id_list(absent_if_minus_one(self.eos_token_id)))

    @property
    def assigned(self) -> tuple[str, ...]:
        """The fields that were given to the constructor, read from a file or set later, in this order."""
        return self._assigned

    @property
    def follows_model(self) -> bool:
        """Whether the settings were derived from a model's configuration and have not been changed since."""
        return self._derived_hash is not None and self._derived_hash == hash(self)

    def get_generation_mode(self, assistant_model: Any = None) -> GenerationMode:
        """Returns the decoding strategy that the settings select, with or without an assistant model."""
        return select_mode(vars(self), assistant_model is not None)

    def validate(
        self, is_init: bool = False, strict: bool = False, user_set_attributes: Collection[str] | None = None
    ) -> None:
        """Checks all fields.

        Args:
            is_init: accepted because earlier releases of transformers have it; has no effect.
            strict: raise an error if a setting has no effect because of another one, instead of a warning.
            user_set_attributes: warn only about these fields; by default about all.

        Raises:
            ConfigError: if a value is out of range, or fields contradict each other; names field, value and limit.
        """
        for name in DEFAULTS:
            value = getattr(self, name)
            check_field(name, absent_if_minus_one(value) if name in TOKEN_IDS else value)
        check_relations(vars(self))
        if strict and (issues := minor_issues(vars(self), user_set_attributes)):
            raise ConfigError("; ".join(issues.values()))
        self._warn(user_set_attributes)

    def _warn(self, names: Collection[str] | None) -> None:
        for issue in minor_issues(vars(self), names).values():
            warnings.warn(issue, UserWarning, stacklevel=3)

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **fields: Any) -> dict[str, Any]:
        """Sets the fields that exist; returns the arguments that are not fields.

        Args:
            defaults_only: set only fields that have not been assigned a value other than None.
            allow_custom_entries: also set attributes that do not exist.
            fields: the new values.

        Raises:
            ConfigError: if a value is out of range.
        """
        unused = {}
        for name, value in fields.items():
            if not hasattr(self, name) and not allow_custom_entries:
                unused[name] = value
            elif not (defaults_only and name in self._assigned and getattr(self, name) is not None):
                check_field(name, absent_if_minus_one(value) if name in TOKEN_IDS else value)
                if fields.get("do_sample", self.do_sample) is True:
                    check_sampling(name, value)
                setattr(self, name, value)
        return unused

    # ---- other forms

    @classmethod
    def from_model_config(cls: type[Self], model_config: LlamaConfig | Mapping[str, Any]) -> Self:
        """Returns the settings in a model's configuration: token ids, and fields such as `max_length` in old files."""
        if not isinstance(model_config, Mapping) and not hasattr(model_config, "to_dict"):
            raise ArgumentError(f"model_config is {show(model_config)}; it must be a LlamaConfig or a dictionary")
        fields = model_config if isinstance(model_config, Mapping) else model_config.to_dict()
        config = cls.from_stored({name: value for name, value in fields.items() if name in DEFAULTS})
        # A model's configuration also contains fields that nobody has set.
        config._assigned = tuple(name for name in config._assigned if getattr(config, name) != DEFAULTS[name])
        config._from_model_config, config._derived_hash = True, config._original_object_hash
        return config

    @classmethod
    def from_dict(cls: type[Self], config_dict: Mapping[str, Any], **fields: Any) -> Any:
        """Builds a configuration from the content of a `generation_config.json`; a null means the default.

        Args:
            config_dict: the content of the file.
            fields: override the content. `return_unused_kwargs=True` returns (configuration, unused fields); as in
                transformers, no field is unused, because unknown ones become attributes.

        Raises:
            ConfigError: if a value is out of range, or fields contradict each other.
        """
        if not isinstance(config_dict, Mapping):
            raise ArgumentError(f"config_dict is {show(config_dict)}; it must be a dictionary of fields")
        with_unused = fields.pop("return_unused_kwargs", False)
        ignored = ("_from_auto", "_from_pipeline")
        config = cls.__new__(cls)
        present = {name: value for name, value in config_dict.items() if value is not None}
        config._assign({**present, **{name: value for name, value in fields.items() if name not in ignored}})
        check_relations(vars(config))
        config._warn(fields)
        unused = {name: value for name, value in fields.items() if not hasattr(config, name) and name not in ignored}
        return (config, unused) if with_unused else config

    @classmethod
    def from_stored(cls: type[Self], content: Mapping[str, Any], **overrides: Any) -> Self:
        """Builds a configuration from the content of a model's file.

        Settings without a valid value are ignored and named in `unusable`, so that they do not prevent loading. Wrong
        token ids, and wrong `overrides`, are errors.
        """
        usable: dict[str, Any] = {}
        notes, unusable = minus_one_notes(content), []
        for name, value in content.items():
            if value is None:
                continue
            usable[name] = convert_value(name, value)
            if type(usable[name]) is not type(value):
                notes.append(f"{name} {value!r} is read as {usable[name]!r}")
            if name in DEFAULTS and name not in TOKEN_IDS:
                try:
                    check_field(name, usable[name])
                    check_sampling(name, usable[name])
                except ConfigError as exc:
                    del usable[name]
                    unusable.append(f"{exc}; the default, {DEFAULTS[name]!r}, is used")
        config = cls.__new__(cls)
        config._assign({**usable, **overrides})
        config._notes, config._unusable = notes, unusable
        config._original_object_hash = hash(config)
        return config

    @classmethod
    @reading_errors(ConfigError)
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name: str | Path,
        config_file_name: str | Path | None = None,
        subfolder: str = "",
        return_unused_kwargs: bool = False,
        **fields: Any,
    ) -> Any:
        """Reads `generation_config.json`.

        Args:
            pretrained_model_name: a folder, the file or a model of the hub.
            config_file_name: the name of the file, by default generation_config.json.
            subfolder: the folder of the file inside the model's folder.
            return_unused_kwargs: return (configuration, unused fields), see `from_dict`.
            fields: override the file's fields; and arguments for the hub: revision, token, cache_dir,
                force_download, local_files_only.
        """
        arguments, _, overrides = file_arguments(fields)
        overrides.pop("_from_model_config", None)
        path = local_path(pretrained_model_name, "config", subfolder, **arguments)
        file = path / (config_file_name or _FILE) if path.is_dir() else path
        content = read_json(file, ConfigError)
        try:
            config = cls.from_stored(content, **overrides)
        except ConfigError as exc:
            raise ConfigError(f"{file}: {exc}") from exc
        config._warn(overrides)
        return (config, {}) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields and attributes, as a deep copy."""
        fields = {name: value for name, value in vars(self).items() if name not in _INTERNAL}
        return copy.deepcopy(fields)

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the fields and attributes that differ from the defaults; these are written to files."""
        defaults = {**DEFAULTS, **METADATA}
        return {
            name: value for name, value in self.to_dict().items() if name not in defaults or value != defaults[name]
        }

    def to_json_string(
        self, use_diff: bool = True, ignore_metadata: bool = False, keys_to_pop: Collection[str] | None = None
    ) -> str:
        """Returns the fields as indented JSON, sorted by name.

        Args:
            use_diff: only fields that differ from the defaults.
            ignore_metadata: without the fields that do not affect generation.
            keys_to_pop: names of fields to leave out.

        Raises:
            ConfigError: if JSON cannot hold a value.
        """
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        omitted = {*(METADATA if ignore_metadata else ()), *(keys_to_pop or ())}
        content = {name: plain(value, name) for name, value in sorted(fields.items()) if name not in omitted}
        return json_bytes(content, _FILE).decode()

    def to_json_file(
        self, json_file_path: str | Path, use_diff: bool = True, keys_to_pop: Collection[str] | None = None
    ) -> None:
        """Writes `to_json_string()` to a file, atomically."""
        write_json(
            path_argument(json_file_path, "json_file_path"),
            json.loads(self.to_json_string(use_diff, keys_to_pop=keys_to_pop)),
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        config_file_name: str | Path | None = None,
        push_to_hub: bool = False,
        **hub_options: Any,
    ) -> None:
        """Writes `generation_config.json`.

        Args:
            save_directory: the folder, which is created if needed.
            config_file_name: the name of the file, by default generation_config.json.
            push_to_hub: also upload the file, as one commit.
            hub_options: `repo_id`, by default the folder's name; `token`, `private`, `commit_message`, ...

        Raises:
            ConfigError: if the settings are not valid.
            ArgumentError: if `hub_options` has an unknown name.

        Warns:
            UserWarning: if a setting has no effect because of another one, and a setting has changed since the
                configuration was read.
        """
        unchanged = self._original_object_hash == hash(self)
        self.validate(user_set_attributes=() if unchanged else None)
        file = make_folder(save_directory) / (config_file_name or _FILE)
        self.to_json_file(file, keys_to_pop=("compile_config",))
        if push_to_hub:
            options = {"repo_id": file.parent.resolve().name, "commit_message": "Upload config"}
            upload_files(file.parent, [file.name], **options | upload_arguments(hub_options))
