"""Models of the Hugging Face hub: `owner/name` in place of a path, downloaded once into the hub's own cache.

A reference is `owner/name`, with `@revision` for a branch, tag or commit and `:part` for the one GGUF file with `part`
in its name. Whatever exists on this machine is never taken for one, so that local paths never touch the network.
`huggingface_hub` does the work (token, cache, resumption, HF_ENDPOINT, HF_HUB_OFFLINE). `reference` reads names,
`choice` chooses files, `download` fetches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from puna.hub.choice import Need
from puna.hub.download import Download, fetch, say
from puna.hub.reference import Reference, parse, read_reference

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Download",
    "HubArguments",
    "Need",
    "Reference",
    "fetch",
    "hub_arguments",
    "local_path",
    "parse",
    "read_reference",
    "say",
    "without_hub_arguments",
]


class HubArguments(TypedDict, total=False):
    """The arguments of transformers that tell how to fetch from the hub. Without effect on a local path."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool


def local_path(path: str | Path, need: Need = "model", subfolder: str = "", **arguments: Unpack[HubArguments]) -> Path:
    """`path`, or where the model of the hub that it names is on this machine, once what is missing was downloaded.

    Args:
        subfolder: the folder within the model that is meant; it is part of the answer.

    Raises:
        ModelNotFoundError: the hub has no such model, or cannot be reached.
        StorageError: there is no space for it.
    """
    reference = parse(path)
    if reference is None:
        return Path(path) / subfolder
    return fetch(reference, need, subfolder=subfolder, **arguments)


def hub_arguments(arguments: Mapping[str, Any]) -> HubArguments:
    """Those of some keyword arguments that are the hub's."""
    return cast(HubArguments, {name: arguments[name] for name in HubArguments.__optional_keys__ & arguments.keys()})


def without_hub_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The others."""
    return {name: value for name, value in arguments.items() if name not in HubArguments.__optional_keys__}
