"""Models and data sets on the Hugging Face hub: `owner/name` instead of a path, downloaded once into the hub's cache.

A reference is `owner/name`, optionally with `@revision` (a branch, tag or commit) and `:part` (part of the name of one
GGUF file). A path that exists on this machine is never a reference, so that local paths never touch the network.
`huggingface_hub` handles tokens, the cache, resumption, HF_ENDPOINT and HF_HUB_OFFLINE. `reference` parses names,
`choice` chooses files, `download` downloads them, `cache` lists and deletes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from puna.errors import ArgumentError, show
from puna.hub.cache import CachedModel, cached_models, cached_names, find_cached, remove_cached
from puna.hub.choice import Need
from puna.hub.data_sets import data_set_files
from puna.hub.download import Download, fetch, print_download
from puna.hub.folders import model_folder
from puna.hub.reference import Reference, cached_model, parse, read_reference
from puna.hub.token import choose_token
from puna.hub.transfer import show_progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "CachedModel", "Download", "HubArguments", "Need", "Reference", "cached_model", "cached_models", "cached_names",
    "choose_token", "data_set_files", "fetch", "file_arguments", "find_cached", "hub_arguments", "local_path",
    "model_folder", "parse", "print_download", "read_reference", "remove_cached", "show_progress",
    "without_hub_arguments",
]  # fmt: skip


class HubArguments(TypedDict, total=False):
    """Arguments for downloads, with the same meaning as in transformers. They have no effect on a local path."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool


def local_path(
    path: str | Path,
    need: Need = "model",
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **arguments: Unpack[HubArguments],
) -> Path:
    """Returns the local path of a model; for a model on the hub, downloads it and returns its path in the cache.

    A local `path` is returned unchanged, unless `model_folder` returns the folder of its model.

    Args:
        subfolder: a folder inside the model's folder, appended to the path.
        variant, use_safetensors: select the weight files to download.

    Raises:
        ModelNotFoundError: the hub has no such model, or cannot be reached.
        StorageError: there is not enough space for the download.
    """
    reference = parse(path)
    if not isinstance(subfolder, str | Path):
        raise ArgumentError(f"subfolder is {show(subfolder)}; it must be a text")
    if reference is None:
        return model_folder(Path(path)) / subfolder
    return fetch(reference, need, subfolder=subfolder, variant=variant, use_safetensors=use_safetensors, **arguments)


def hub_arguments(arguments: Mapping[str, Any]) -> HubArguments:
    """Returns the keyword arguments that are in `HubArguments`."""
    return cast(HubArguments, {name: arguments[name] for name in HubArguments.__optional_keys__ & arguments.keys()})


def without_hub_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments that are not in `HubArguments`."""
    return {name: value for name, value in arguments.items() if name not in HubArguments.__optional_keys__}


_WITHOUT_EFFECT = (
    "proxies", "resume_download", "trust_remote_code", "user_agent", "mirror", "local_dir", "_from_auto",
    "_from_pipeline", "_commit_hash",
)  # fmt: skip
"""Arguments of `from_pretrained` in transformers that change nothing here; proxies are read from the environment."""


def file_arguments(arguments: Mapping[str, Any]) -> tuple[HubArguments, str, dict[str, Any]]:
    """Splits keyword arguments of a `from_pretrained` that reads one small file.

    Returns:
        The arguments for downloads, `subfolder`, and those that do not concern reading the file.

    Raises:
        RequestError: both `token` and its older name, `use_auth_token`, are given.
    """
    others = dict(arguments)
    if (token := choose_token(others.get("token"), others.pop("use_auth_token", None))) is not None:
        others["token"] = token
    subfolder = others.pop("subfolder", "") or ""
    hub = hub_arguments(others)
    return hub, subfolder, {k: v for k, v in without_hub_arguments(others).items() if k not in _WITHOUT_EFFECT}
