"""What `huggingface_hub` is asked for, and what its failures mean to a user. It is imported only here."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ModelNotFoundError, StorageError
from puna.hub.choice import Need, Wanted
from puna.hub.reference import Reference


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
    want = Wanted(need, tuple(include), subfolder.strip("/"), reference)
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


def _cached(want: Wanted, cache: Path, unreachable: Exception | None) -> Path:
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
