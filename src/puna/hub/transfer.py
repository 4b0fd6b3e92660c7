"""Downloads files of one commit in parallel with `huggingface_hub`, and shows their common progress as one bar."""

from __future__ import annotations

import inspect
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from puna.errors import CheckpointError, printable
from puna.files import make_folder
from puna.hub.listing import RemoteFile
from puna.hub.reference import Reference
from puna.hub.snapshot import snapshot_folder, unverified_mark, verify

_FILES_AT_ONCE = 8
"""As in `snapshot_download` of huggingface_hub."""


class _StoppedError(Exception):
    """Ends the other downloads after Ctrl-C or an error; huggingface_hub keeps their partial files."""


def download_files(
    reference: Reference,
    commit: str,
    files: Mapping[str, RemoteFile],
    *,
    cache: Path,
    token: str | bool | None,
    force: bool,
) -> None:
    """Downloads files of a commit into the cache, and verifies each; resumes interrupted downloads.

    If a resumed file is damaged, it is downloaded once more from scratch.

    Raises:
        CheckpointError: a file was damaged during the download; it is deleted.
        Exception: errors of `huggingface_hub`, its HTTP library, and the disk.
    """
    from huggingface_hub import hf_hub_download

    stopped = threading.Event()
    with _progress_bar(sum(file.size or 0 for file in files.values())) as show:

        def advance(count: float) -> None:
            if stopped.is_set():
                raise _StoppedError
            show(count)

        options: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # since huggingface_hub 1.3
            options["tqdm_class"] = _bar_class(advance)

        folder = snapshot_folder(cache, reference, commit)

        def download(name: str) -> None:
            was_interrupted = unverified_mark(folder / name).exists()
            try:
                download_once(name)
            except CheckpointError:
                if not was_interrupted:
                    raise
                download_once(name)  # the damage may be in data that an interrupted process left in the cache

        def download_once(name: str) -> None:
            mark = unverified_mark(folder / name)
            make_folder(mark.parent)
            mark.touch()
            path = hf_hub_download(
                reference.id, name, repo_type=reference.kind, revision=commit, cache_dir=cache, token=token,
                force_download=force, **options,
            )  # fmt: skip
            verify(Path(path), files[name])

        try:
            _run_all(download, list(files), stopped)
        finally:
            stopped.set()


def _run_all(run: Callable[[str], None], names: Sequence[str], stopped: threading.Event) -> None:
    """Runs a function for each name, in several threads; raises the first error at once.

    The threads are daemons, so that Ctrl-C ends the process without waiting for the next piece of each download.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    results: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)

    def work() -> None:
        while not stopped.is_set():
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                run(name)
                results.put(None)
            except Exception as exc:
                results.put(exc)

    for _ in range(min(_FILES_AT_ONCE, len(names))):
        threading.Thread(target=work, daemon=True).start()
    for _ in names:
        error = results.get()
        if error is not None:
            raise error


_progress = {"shown": True}


def show_progress(is_shown: bool) -> None:
    """Sets whether downloads show their progress and messages on standard error."""
    _progress["shown"] = is_shown


def print_message(text: str) -> None:
    """Prints a line on standard error, with control characters escaped; nothing after `show_progress(False)`."""
    if _progress["shown"] and sys.stderr is not None:
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[float], None]]:
    """Yields a function that advances a bar on standard error by a number of bytes; no bar without a terminal."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    if not _progress["shown"] or sys.stderr is None or not sys.stderr.isatty() or are_progress_bars_disabled():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total or None)
        yield lambda count: bar.advance(task, count)


def _bar_class(advance: Callable[[float], None]) -> type[Any]:
    """Returns a class with the interface of tqdm that huggingface_hub uses; its bars advance the common bar."""

    class Bar:
        def __init__(self, *args: Any, initial: float = 0, **options: Any) -> None:
            advance(initial)

        def update(self, count: float | None = 1) -> None:
            advance(count or 0)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args, **options: None  # descriptions, rates, closing

    return Bar
