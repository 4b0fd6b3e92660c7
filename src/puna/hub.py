"""Models of the Hugging Face hub: `owner/name` in place of a path, downloaded once into the hub's own cache.

A reference is `owner/name`, with `@revision` for a branch, tag or commit and `:part` for the one GGUF file with `part`
in its name. Whatever exists on this machine is never taken for one, so that local paths never touch the network.
`huggingface_hub` does the work (token, cache, resumption, HF_ENDPOINT, HF_HUB_OFFLINE), and is imported only here.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from puna.errors import ModelNotFoundError, RequestError, StorageError

if TYPE_CHECKING:
    from typing_extensions import Unpack

Need = Literal["model", "tokenizer", "config"]
"""What of a model is needed: all of it, or its small files alone where those are enough."""

_REFERENCE = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[\w./-]{1,250}))?(:(?P<part>[\w.-]{1,96}))?",
    re.ASCII,
)

_SMALL = ("*.json", "*.jinja", "tokenizer.model", "LICENSE*")
"""Everything of a model but its weights; only files that lie beside the weights are taken."""

_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("*.safetensors",),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("consolidated.*.pth",),
    ("*.gguf",),
)
"""Weights, the kinds puna prefers first; of the first kind there is, all are taken."""

_LISTED = 30
"""Names listed in an error."""


class HubArguments(TypedDict, total=False):
    """The arguments of transformers that tell how to fetch from the hub. Without effect on a local path."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool


@dataclass(frozen=True)
class Reference:
    """A model of the hub: `owner/name`, a branch, tag or commit, and part of the name of one GGUF file."""

    id: str
    revision: str | None = None
    part: str | None = None

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{self.part}" if self.part else "")


@dataclass(frozen=True)
class Download:
    """What is about to be downloaded.

    Attributes:
        reference: of what.
        commit: the commit that the revision means now.
        missing: bytes of each file that is needed and not in the cache yet.
        cache: the folder they go to.
    """

    reference: Reference
    commit: str
    missing: Mapping[str, int]
    cache: Path

    def __str__(self) -> str:
        count, size = len(self.missing), sum(self.missing.values())
        return (
            f"downloading {self.reference} ({self.commit[:12]}): {count} file{'s' * (count != 1)}, "
            f"{size / 1e6:,.1f} MB, to {self.cache}"
        )


def parse(text: str | Path) -> Reference | None:
    """The reference that `text` is; None where it is something on this machine, or can only be a path."""
    try:
        return None if Path(text).exists() else _matched(str(text))
    except OSError:  # a path that may not be read is a path
        return None


def read_reference(text: str) -> Reference:
    """The reference that `text` must be.

    Raises:
        RequestError: it is none.
    """
    found = _matched(text)
    if found is None:
        raise RequestError(
            f"{text!r:.120} is no model of the hub; give owner/name, owner/name@revision or owner/name:part"
        )
    return found


def _matched(text: str) -> Reference | None:
    found = _REFERENCE.fullmatch(text)
    return None if found is None or ".." in text else Reference(found["id"], found["revision"], found["part"])


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


def say(download: Download) -> None:
    """Tells on standard error what is about to be downloaded."""
    sys.stderr.write(f"{download}\n")
    sys.stderr.flush()


def fetch(
    reference: Reference,
    need: Need = "model",
    *,
    include: Iterable[str] = (),
    subfolder: str = "",
    announce: Callable[[Download], None] = say,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model in the cache, or its GGUF file, after downloading what is missing.

    Where the hub cannot be reached, what the cache has is used.

    Args:
        include: patterns of file names to download in place of what `need` means.
        announce: called before the first byte, unless everything is there.
        revision: in place of the reference's.
        token: in place of HF_TOKEN's; False sends none.
        cache_dir: in place of HF_HOME's.
        force_download: download what the cache has, too.
        local_files_only: never ask the hub.

    Raises:
        ModelNotFoundError: the hub has no such model or revision, it does not let us have it, it has no file of the
            kind, or it cannot be reached and the cache has nothing.
        StorageError: there is no space for it.
    """
    from huggingface_hub import constants

    reference = Reference(reference.id, revision or reference.revision, reference.part)
    want = _Wanted(need, tuple(include), subfolder.strip("/"), reference)
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    if local_files_only or constants.HF_HUB_OFFLINE:
        return _cached(want, cache, None)
    try:
        commit, sizes = _listing(reference, token)
    except _answers() as exc:
        raise _explained(exc, reference) from exc
    except _failures() as exc:
        return _cached(want, cache, exc)
    chosen = want.choose(sizes)
    download = _plan(reference, commit, {name: sizes[name] for name in chosen}, cache, force_download)
    if download.missing:
        _check_space(download)
        announce(download)
    try:
        folder = _snapshot(reference, chosen, cache, token, force_download)
    except _failures() as exc:
        raise _explained(exc, reference) from exc
    return want.path(folder, chosen)


@dataclass(frozen=True)
class _Wanted:
    """What of a repository is wanted."""

    need: Need
    include: tuple[str, ...]
    subfolder: str
    reference: Reference

    def choose(self, names: Iterable[str]) -> list[str]:
        """The files to take, of all there are.

        Raises:
            ModelNotFoundError: none, or several GGUF files of which one has to be named.
        """
        names = sorted(names)
        if self.include:
            chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in self.include)]
            if not chosen:
                raise ModelNotFoundError(
                    f"{self.reference}: no file matches {', '.join(self.include)}; it has {_listed(names)}"
                )
            return chosen
        here = [name for name in names if PurePosixPath(name).parent == PurePosixPath(self.subfolder)]
        small = [name for name in here if _matches(name, _SMALL)]
        held = {PurePosixPath(name).name for name in small}
        enough = {"model": False, "tokenizer": bool(held & {"tokenizer.json", "tokenizer.model"}),
                  "config": "config.json" in held}[self.need]  # fmt: skip
        if enough and self.reference.part is None:
            return small
        return small + self._weights(here, names)

    def _weights(self, here: list[str], names: list[str]) -> list[str]:
        if self.reference.part is not None:
            files = [name for name in names if name.endswith(".gguf")]
            found = [name for name in files if self.reference.part.lower() in PurePosixPath(name).name.lower()]
            if len(found) == 1:
                return found
            what = f"{len(found)} GGUF files with {self.reference.part!r} in their names"
            raise ModelNotFoundError(f"{self.reference}: {what}; it has {_listed(found or files or names)}")
        weights = next((found for kind in _WEIGHTS if (found := [name for name in here if _matches(name, kind)])), [])
        if not weights:
            raise ModelNotFoundError(f"{self.reference}: no weights that puna reads; it has {_listed(names)}")
        if len(weights) > 1 and weights[0].endswith(".gguf"):
            stem = PurePosixPath(weights[0]).stem
            raise ModelNotFoundError(
                f"{self.reference}: {len(weights)} GGUF files: {_listed(weights)}. Name one by a part of its name, "
                f"such as {self.reference}:{stem.rpartition('-')[2] or stem}"
            )
        return weights

    def path(self, folder: Path, chosen: list[str]) -> Path:
        """The model's folder, or its GGUF file where that is its only one."""
        files = [name for name in chosen if name.endswith(".gguf")]
        return folder / files[0] if len(files) == 1 else folder / self.subfolder


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "") if names else "no files"


def _listing(reference: Reference, token: str | bool | None) -> tuple[str, dict[str, int]]:
    """The commit that a revision means, and the bytes of each of its files."""
    from huggingface_hub import HfApi

    found = HfApi().model_info(reference.id, revision=reference.revision, files_metadata=True, token=token)
    return str(found.sha), {item.rfilename: int(item.size or 0) for item in found.siblings or []}


def _plan(reference: Reference, commit: str, files: Mapping[str, int], cache: Path, again: bool) -> Download:
    from huggingface_hub import try_to_load_from_cache

    def is_cached(name: str) -> bool:
        return isinstance(try_to_load_from_cache(reference.id, name, cache_dir=cache, revision=commit), str)

    missing = {name: size for name, size in files.items() if again or not is_cached(name)}
    return Download(reference, commit, missing, cache)


def _check_space(download: Download) -> None:
    place = next(folder for folder in (download.cache, *download.cache.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(place).free, sum(download.missing.values())
    if needed > free:
        raise StorageError(
            f"{download.reference} takes {needed / 1e6:,.1f} MB; {download.cache} has {free / 1e6:,.1f} MB free. Free "
            "space, or set HF_HOME to a folder on a larger disk"
        )


def _snapshot(reference: Reference, names: list[str], cache: Path, token: str | bool | None, again: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        reference.id,
        revision=reference.revision,
        # Names become patterns: what is special in a pattern stands for itself.
        allow_patterns=[re.sub(r"([*?[])", r"[\1]", name) for name in names],
        cache_dir=cache,
        token=token,
        force_download=again,
    )
    return Path(str(folder))


def _cached(want: _Wanted, cache: Path, unreachable: Exception | None) -> Path:
    """What the cache has of a model, when the hub is not to be asked or does not answer."""
    from huggingface_hub import constants, errors, snapshot_download

    reference = want.reference
    try:
        # No patterns: the folder with whatever it has. What is missing there is found by `choose`, and on opening.
        found = snapshot_download(
            reference.id, revision=reference.revision, cache_dir=cache, local_files_only=True, allow_patterns=[]
        )
    except errors.LocalEntryNotFoundError as exc:
        why = "is offline (HF_HUB_OFFLINE or local_files_only)"
        if unreachable is not None:
            why = f"cannot be reached at {constants.ENDPOINT} ({_short(unreachable)})"
        raise ModelNotFoundError(
            f"{reference}: no such file or folder here, and the hub, where it could be a model, {why}. Check the path, "
            "or the network"
        ) from exc
    folder = Path(str(found))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if unreachable is not None:
        sys.stderr.write(
            f"the hub cannot be reached ({_short(unreachable)}); using {reference} as it is in the cache\n"
        )
    return want.path(folder, want.choose(names))


def _answers() -> tuple[type[Exception], ...]:
    """What the hub answers when it has no such thing, or not for us."""
    from huggingface_hub import errors

    return errors.RepositoryNotFoundError, errors.RevisionNotFoundError  # a gated model is one that is not found


def _failures() -> tuple[type[Exception], ...]:
    """Everything else that a request fails with; which library raises it depends on the release of huggingface_hub."""
    from huggingface_hub import errors

    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    return OSError, errors.HfHubHTTPError, transport


def _explained(exc: Exception, reference: Reference) -> Exception:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{reference.id}"
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return StorageError(
            f"{reference}: the disk is full; what was downloaded is kept. Free space, or set HF_HOME to a folder on a "
            "larger disk, and repeat the command"
        )
    if isinstance(exc, errors.GatedRepoError):
        return ModelNotFoundError(
            f"{reference}: its owners grant access one by one. Ask for it at {page}, then set HF_TOKEN (or run "
            "`hf auth login`)"
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return ModelNotFoundError(
            f"{reference}: the model has no revision {reference.revision!r}; see {page}/tree/main"
        )
    if isinstance(exc, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{reference}: no such file or folder here, and no such model at {constants.ENDPOINT}, or a private one. "
            "Check its name; for a private model set HF_TOKEN"
        )
    return ModelNotFoundError(
        f"{reference}: the download failed ({_short(exc)}); what was downloaded is kept. Repeat the command to go on"
    )


def _short(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__
