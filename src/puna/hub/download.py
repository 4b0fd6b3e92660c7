"""Downloads models and translates the errors of `huggingface_hub`, which only this module imports."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ModelNotFoundError, PunaError, StorageError, first_line, show_bytes
from puna.files import free_bytes
from puna.hub.choice import Need, Selection
from puna.hub.listing import UnexpectedAnswerError, list_files
from puna.hub.reference import Reference
from puna.hub.snapshot import cached_snapshot, is_complete, record_branch, snapshot_folder
from puna.hub.transfer import download_files, print_message


@dataclass(frozen=True)
class Download:
    """A download that has not begun.

    Attributes:
        reference: the model.
        commit: the commit to which the revision currently refers.
        missing: size in bytes of each file to download.
        cache: the folder of the hub's cache.
    """

    reference: Reference
    commit: str
    missing: Mapping[str, int]
    cache: Path

    def __str__(self) -> str:
        count, size = len(self.missing), sum(self.missing.values())
        return (
            f"downloading {self.reference} ({self.commit[:12]}): {count} file{'s' * (count != 1)}, "
            f"{show_bytes(size)}, to {self.cache}"
        )


def print_download(download: Download) -> None:
    """Prints a download to standard error."""
    print_message(str(download))


def fetch(
    reference: Reference,
    need: Need = "model",
    *,
    include: Iterable[str] = (),
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    split: str = "train",
    announce: Callable[[Download], None] = print_download,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Downloads the files of a model that are not in the cache; returns its folder in the cache, or its GGUF file.

    If the hub cannot be reached, the files in the cache are used.

    Args:
        need: the part of the model to download.
        include: glob patterns of the files to download; overrides `need`.
        subfolder: the folder of the model's files in the repository.
        variant, use_safetensors: select the weight files; see `Selection`.
        split: selects the files of a data set.
        announce: called before a download begins; not called if no file is missing.
        revision: overrides the revision of `reference`.
        token: overrides HF_TOKEN; False sends no token.
        cache_dir: overrides the cache folder of HF_HOME.
        force_download: whether to download even the files that are in the cache.
        local_files_only: whether to use only the cache.

    Raises:
        ModelNotFoundError: the hub has no such model or revision, denies access, or has no suitable file; or the hub
            cannot be reached and the model is not in the cache.
        StorageError: there is not enough space.
    """
    from huggingface_hub import constants

    reference = reference.at(revision)
    selection = Selection(need, tuple(include), subfolder.strip("/"), reference, variant, use_safetensors, split)
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    if local_files_only or constants.HF_HUB_OFFLINE:
        return _path_in_cache(selection, cache, None)
    try:
        listing = list_files(reference, token)
    except _not_found_errors() as exc:
        raise _user_error(exc, reference) from exc
    except _unavailable_errors() as exc:
        return _path_in_cache(selection, cache, exc)
    names = selection.choose(listing.files)
    folder = snapshot_folder(cache, reference, listing.commit)
    missing = {n: listing.files[n] for n in names if force_download or not is_complete(folder / n, listing.files[n])}
    download = Download(reference, listing.commit, {name: file.size or 0 for name, file in missing.items()}, cache)
    if missing:
        _check_space(download)
        announce(download)
    try:
        if missing:
            download_files(reference, listing.commit, missing, cache=cache, token=token, force=force_download)
        record_branch(cache, reference, listing.commit)
    except PunaError:
        raise
    except Exception as exc:  # errors of the disk, of huggingface_hub, of its HTTP and transfer libraries
        raise _user_error(exc, reference) from exc
    return selection.path(folder, names)


def _check_space(download: Download) -> None:
    free, needed = free_bytes(download.cache), sum(download.missing.values())
    if needed > free:
        raise StorageError(
            f"{download.reference} needs {show_bytes(needed)}; {download.cache} has {show_bytes(free)} free. Free "
            "some space, or set HF_HOME to a folder on a larger disk"
        )


def _path_in_cache(selection: Selection, cache: Path, failure: Exception | None) -> Path:
    """Returns a model's path in the cache; `failure` is the error of the hub, None if the hub was not asked."""
    reference = selection.reference
    folder = cached_snapshot(cache, reference)
    if folder is None:
        reason = "is not used (HF_HUB_OFFLINE or local_files_only)" if failure is None else _failure(failure)
        raise ModelNotFoundError(
            f"{reference}: no such file or folder, no such {reference.noun} in the cache, and the hub {reason}. "
            "Check the path or the network"
        ) from failure
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    if failure is not None:
        print_message(f"the hub {_failure(failure)}; using {reference} from the cache")
    return selection.path(folder, selection.choose(names))


def _not_found_errors() -> tuple[type[Exception], ...]:
    """Returns the exception types for a model or revision that does not exist or is not accessible to the user."""
    from huggingface_hub import errors

    return errors.RepositoryNotFoundError, errors.RevisionNotFoundError  # the first includes GatedRepoError


def _unavailable_errors() -> tuple[type[Exception], ...]:
    """Returns the exception types of a hub that cannot be used now; one depends on huggingface_hub's HTTP library."""
    from huggingface_hub import errors

    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    return UnexpectedAnswerError, OSError, errors.HfHubHTTPError, transport


def _user_error(exc: Exception, reference: Reference) -> Exception:
    """Returns the error shown to the user, with a remedy."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' * (reference.kind == 'dataset')}{reference.id}"
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return StorageError(
            f"{reference}: the disk is full; the partial download is kept. Free some space, or set HF_HOME to a folder "
            "on a larger disk, and repeat the command"
        )
    if isinstance(exc, errors.GatedRepoError):
        return ModelNotFoundError(
            f"{reference}: access to this {reference.noun} must be requested. Request it at {page}, then set HF_TOKEN "
            "(or run `hf auth login`)"
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return ModelNotFoundError(
            f"{reference}: the {reference.noun} has no revision {reference.revision!r}; see {page}/tree/main"
        )
    if isinstance(exc, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{reference}: no such file or folder, and no public {reference.noun} of this name at "
            f"{constants.ENDPOINT}. Check the name; for a private {reference.noun}, set HF_TOKEN"
        )
    return ModelNotFoundError(
        f"{reference}: the download failed ({first_line(exc)}); the partial download is kept. Repeat the command to "
        "resume it"
    )


def _failure(exc: Exception) -> str:
    """Returns the predicate of a sentence about the hub that failed to list a model."""
    from huggingface_hub import constants

    if isinstance(exc, UnexpectedAnswerError):
        return (
            f"at {constants.ENDPOINT} gave an answer that is not a list of files ({first_line(exc)}); a login page or "
            "a proxy may have answered instead"
        )
    response = getattr(exc, "response", None)
    if response is not None:
        wait = "; wait some minutes, or set HF_TOKEN for a higher limit" if response.status_code == 429 else ""
        return f"at {constants.ENDPOINT} answered with status {response.status_code}{wait}"
    return f"cannot be reached at {constants.ENDPOINT} ({first_line(exc)})"
