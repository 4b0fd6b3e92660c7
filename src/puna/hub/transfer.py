"""Downloads files of one commit in parallel with `huggingface_hub`, and shows their common progress as one bar."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from puna.hub.reference import Reference

_FILES_AT_ONCE = 8
"""As in `snapshot_download` of huggingface_hub."""


def download_files(
    reference: Reference,
    commit: str,
    names: Sequence[str],
    total: int,
    *,
    cache: Path,
    token: str | bool | None,
    force: bool,
) -> list[Path]:
    """Downloads files of a commit into the cache; resumes interrupted downloads.

    Args:
        total: bytes of all files.

    Raises:
        Exception: errors of `huggingface_hub`, its HTTP library, and the disk.
    """
    from huggingface_hub import hf_hub_download

    with _progress_bar(total) as advance, ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        options: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # since huggingface_hub 1.3
            options["tqdm_class"] = _bar_class(advance)

        def download(name: str) -> Path:
            return Path(
                hf_hub_download(
                    reference.id, name, revision=commit, cache_dir=cache, token=token, force_download=force, **options
                )
            )

        downloads = [pool.submit(download, name) for name in names]
        try:
            return [future.result() for future in downloads]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_progress = {"shown": True}


def show_progress(is_shown: bool) -> None:
    """Sets whether downloads show their progress on standard error."""
    _progress["shown"] = is_shown


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
