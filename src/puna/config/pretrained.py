"""`PretrainedConfig`: the interface that all configurations of Hugging Face share, for code written against it.

This module reads and writes files, dictionaries and JSON; `attributes` has the attributes. The fields of a LLaMA model
are in `llama`.
"""

from __future__ import annotations

import copy
import inspect
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from puna.config.attributes import ConfigAttributes
from puna.config.base_defaults import DEFAULTS
from puna.errors import ArgumentError, ConfigError, ModelNotFoundError, show
from puna.files import has_file, json_bytes, make_folder, path_argument, read_json, reading_errors, write_json
from puna.hub import file_arguments, local_path
from puna.hub.upload import upload_arguments, upload_files

if TYPE_CHECKING:
    from typing_extensions import Self

_BOOKKEEPING = frozenset({"_name_or_path", "transformers_version"})
"""Where a configuration came from; this affects neither the model nor the equality of two configurations."""

_ARGUMENTS = DEFAULTS.keys() | {"transformers_version", "num_labels", "dtype", "torch_dtype", "attn_implementation"}
"""Arguments of every configuration."""


class PretrainedConfig(ConfigAttributes):
    """Base class of configurations; see `ConfigAttributes` for its arguments."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and _comparable(self.to_dict()) == _comparable(other.to_dict())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = dict(sorted(self.to_diff_dict().items()))
        return f"{type(self).__name__} {json.dumps(fields, indent=2, ensure_ascii=False, default=repr)}\n"

    @overload
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Reads `config.json`.

        Args:
            pretrained_model_name_or_path: a folder, the file, or a model of the hub.
            cache_dir, force_download, local_files_only, token, revision: for a model of the hub.
            kwargs: fields that take precedence over the file's; `subfolder`, the folder of the file; and
                `return_unused_kwargs`, which returns the configuration and the arguments that are not fields.

        Raises:
            ModelNotFoundError: if there is no such file.
            ConfigError: if the file is not a configuration of this class.
        """
        unused = kwargs.pop("return_unused_kwargs", False)
        hub = {"cache_dir": cache_dir, "force_download": force_download, "local_files_only": local_files_only}
        hub |= {name: value for name, value in (("token", token), ("revision", revision)) if value is not None}
        fields, overrides = cls.get_config_dict(pretrained_model_name_or_path, **hub, **kwargs)
        try:
            return cls.from_dict(fields, return_unused_kwargs=unused, **overrides)
        except ConfigError as exc:
            raise ConfigError(f"{_file_name(pretrained_model_name_or_path)}: {exc}") from exc

    @classmethod
    @reading_errors(ConfigError)
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the content of `config.json`, and the arguments that do not concern reading it."""
        arguments, subfolder, others = file_arguments(kwargs)
        path = path_argument(pretrained_model_name_or_path, "the path or name of the configuration")
        file = path if path.is_file() else local_path(pretrained_model_name_or_path, "config", subfolder, **arguments)
        file = file / "config.json" if file.is_dir() else file
        if not has_file(file, ConfigError):
            where = f"{path}/{subfolder}" if subfolder else path
            raise ModelNotFoundError(f"{where} has no config.json; give the folder of a model")
        return read_json(file, ConfigError), others

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]: ...

    @overload
    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Self: ...

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from the content of a `config.json`; the fields in `kwargs` take precedence.

        Arguments that are not fields are ignored with a warning, or returned with `return_unused_kwargs=True`.

        Raises:
            ConfigError: if a field is out of range.
        """
        if not isinstance(config_dict, Mapping):
            raise ArgumentError(f"config_dict is {show(config_dict)}; it must be a dictionary of fields")
        return_unused = kwargs.pop("return_unused_kwargs", False)
        overrides = {name: value for name, value in kwargs.items() if name in config_dict or cls._has_field(name)}
        unused = {name: value for name, value in kwargs.items() if name not in overrides}
        config = cls._build(config_dict, overrides)
        if return_unused:
            return config, unused
        if unused:
            warnings.warn(
                f"{', '.join(unused)} ignored: {cls.__name__} has no such field. To add one, assign an attribute",
                stacklevel=2,
            )
        return config

    @classmethod
    def _has_field(cls, name: str) -> bool:
        settable = isinstance(getattr(cls, name, None), property)
        return settable or name in cls.field_names() or name in _ARGUMENTS or name in cls.attribute_map

    @classmethod
    def _build(cls, fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        """Builds a configuration from a file's fields and the fields that replace them; a null means the default."""
        names = cls.field_names() | _ARGUMENTS
        merged = {
            name: value
            for name, value in fields.items()
            if value is not None or name not in names or name.endswith("_token_id")  # a null id means no token
        }
        if "num_labels" in overrides:
            merged = {name: value for name, value in merged.items() if name not in ("id2label", "label2id")}
            labels = overrides.get("id2label")
            if labels is not None and len(labels) != overrides["num_labels"]:
                raise ConfigError(
                    f"num_labels is {overrides['num_labels']}, but id2label has {len(labels)} entries; give one of them"
                )
        for name, synonym in (("dtype", "torch_dtype"), ("torch_dtype", "dtype")):
            if name in overrides:
                merged.pop(synonym, None)
        merged |= {cls.attribute_map.get(name, name): value for name, value in overrides.items()}
        if isinstance(merged.get("pruned_heads"), Mapping):
            merged["pruned_heads"] = _with_layer_numbers(merged["pruned_heads"])
        return cls(**merged)

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Reads a configuration file."""
        fields = read_json(path_argument(json_file, "json_file"), ConfigError)
        try:
            return cls.from_dict(fields)
        except ConfigError as exc:
            raise ConfigError(f"{json_file}: {exc}") from exc

    def to_dict(self) -> dict[str, Any]:
        """Returns all attributes in the form in which a `config.json` holds them."""
        fields = {name: _plain(value) for name, value in vars(self).items() if name not in self._unsaved}
        fields |= dict.fromkeys(("dtype", "torch_dtype"), self.dtype_name)  # the names in transformers 5.x and 4.x
        return {"model_type": self.model_type, **fields}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the attributes that differ from the defaults of every configuration or of this class."""
        base, own = PretrainedConfig().to_dict(), self._defaults()
        return {
            name: value
            for name, value in self.to_dict().items()
            if (name not in base or value != base[name] or value != own.get(name, value)) and name != "_name_or_path"
        }

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        required = (p for p in inspect.signature(cls).parameters.values() if p.default is p.empty)
        return {} if any(p.kind is not p.VAR_KEYWORD for p in required) else cls().to_dict()

    def dict_torch_dtype_to_str(self, d: dict[str, Any]) -> None:
        """Replaces each `torch.dtype` under the keys torch_dtype and dtype by its name, also in nested dictionaries."""
        for name, value in d.items():
            if name in ("torch_dtype", "dtype") and value is not None and not isinstance(value, str | int | Mapping):
                d[name] = str(value).rpartition(".")[2]
            elif isinstance(value, dict):
                self.dict_torch_dtype_to_str(value)

    dict_dtype_to_str = dict_torch_dtype_to_str

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns the content of `config.json`; without `use_diff`, all attributes.

        Raises:
            ConfigError: if JSON cannot hold a value.
        """
        return json_bytes(self._sorted(use_diff), "config.json").decode()

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Writes the text of `to_json_string` to a file."""
        write_json(path_argument(json_file_path, "json_file_path"), self._sorted(use_diff))

    def _sorted(self, use_diff: bool) -> dict[str, Any]:
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        for name, value in fields.items():
            if callable(value):
                raise ConfigError(f"{name} is {show(value)}; to be saved, it must be a value that JSON can hold")
        return dict(sorted(fields.items()))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `config.json` into a folder, which is created if needed.

        Args:
            save_directory: the folder.
            push_to_hub: upload the file too; `kwargs` are the arguments of `push_to_hub`, where `repo_id` is by default
                the name of the folder.

        Raises:
            ConfigError: if a field cannot be written, such as a callable.
        """
        folder = make_folder(save_directory)
        self.to_json_file(folder / "config.json")
        if push_to_hub:
            _upload(folder, {"repo_id": folder.resolve().name, **kwargs})

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Uploads `config.json` to a model of the hub; returns huggingface_hub's CommitInfo.

        Args:
            repo_id: `owner/name`, or a name in the user's namespace.
            kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message` and `commit_description`.

        Raises:
            ArgumentError: an argument is unknown.
            RequestError: the hub refused the upload.
            StorageError: the hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.to_json_file(Path(folder) / "config.json")
            return _upload(Path(folder), {"repo_id": repo_id, **kwargs})


PreTrainedConfig = PretrainedConfig
"""The name in transformers 5."""


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _BOOKKEEPING}


def _plain(value: Any) -> Any:
    """Returns a copy of an attribute in the form in which JSON holds it."""
    if hasattr(value, "to_dict") and not isinstance(value, type):  # a nested configuration, quantisation settings
        return value.to_dict()
    return copy.deepcopy(value)


def _with_layer_numbers(pruned: Mapping[Any, Any]) -> dict[int, Any]:
    """Returns pruned heads with whole numbers as keys, which are strings in JSON."""
    try:
        return {int(layer): heads for layer, heads in pruned.items()}
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"pruned_heads is {show(pruned)}; its keys must be numbers of layers") from exc


def _upload(folder: Path, arguments: Mapping[str, Any]) -> Any:
    return upload_files(folder, ["config.json"], **{"commit_message": "Upload config"} | upload_arguments(arguments))


def _file_name(path: str | Path) -> Path:
    return Path(path) if Path(path).is_file() else Path(path) / "config.json"
