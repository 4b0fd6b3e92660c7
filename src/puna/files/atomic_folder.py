"""Files of a folder that are replaced together: `save_pretrained` replaces some files of a folder and keeps the others.

New files are written into a staging folder inside that folder, and moved when all are complete. A process that is
killed at any moment leaves the old files, the new files, or a folder that no reader accepts and that contains the old
files in `.old-*`; it never leaves a mixture that loads.

    folder/.saving-*, folder/.old-*    staging folder of new files; old files while the new ones replace them
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from puna.errors import CheckpointError
from puna.files.atomic_file import make_parents


@contextmanager
def temporary_staging(folder: Path) -> Iterator[Path]:
    """Yields a staging folder inside `folder`; creates `folder` if needed, and removes it again if the block fails."""
    with make_parents(folder, folder), tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging:
        yield Path(staging)


def replace_files(staging: Path, folder: Path, names: Sequence[str], outdated: Sequence[str]) -> None:
    """Moves the files `names` from `staging` to `folder` and removes the files `outdated` from `folder`.

    The last of `names` is the key file, without which no reader accepts the folder. It is moved out first and in last,
    so that a process killed at any moment leaves the old files, the new files, or a folder that is refused, with the
    old files in a folder `.old-...` inside. If only one file differs, a single rename replaces it.

    Raises:
        OSError: a file cannot be moved; the old files are restored.
        CheckpointError: the old files cannot be restored either; the message contains their folder.
    """
    key, present_names = names[-1], {path.name for path in folder.iterdir()}
    different = [name for name in names if not _same_json(staging / name, folder / name)]
    if len(different) == 1 and not outdated:
        (staging / different[0]).replace(folder / different[0])
        return
    new_names = [*(name for name in different if name != key), key]
    old_names = [name for name in (key, *outdated, *new_names[:-1]) if name in present_names]
    old = Path(tempfile.mkdtemp(dir=folder, prefix=".old-"))
    moves = [(folder / name, old / name) for name in old_names] + [(staging / n, folder / n) for n in new_names]
    attempts: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            attempts.append((source, target))  # recorded first, since Ctrl-C may come before the move ends
            source.replace(target)
    except BaseException:
        _undo(attempts, old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _same_json(one: Path, other: Path) -> bool:
    """Whether two JSON files are equal. Weights always count as different: they are too large to compare."""
    return one.suffix == ".json" and other.is_file() and one.read_bytes() == other.read_bytes()


def _undo(moves: Sequence[tuple[Path, Path]], old: Path) -> None:
    try:
        for source, target in reversed(moves):
            with suppress(FileNotFoundError):  # the move that failed
                target.replace(source)
        old.rmdir()
    except OSError as exc:
        raise CheckpointError(
            f"{old.parent}: files could neither be moved nor moved back ({exc}); those of the earlier save are in "
            f"{old.name}, move them back"
        ) from exc
