"""Files of a folder replaced together by new ones: all of them or none. What is in them is the affair of `saving`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from puna.errors import CheckpointError


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder inside `target` to write new files into; gone afterwards.

    `target` is made if needed, and where the writing fails, what was made goes too.
    """
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as place:
            yield Path(place)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def replace_together(staged: Path, target: Path, names: Sequence[str], outdated: Sequence[str]) -> None:
    """Moves the files `names` from `staged` to `target`, and takes the files `outdated` out of `target`.

    The last of `names` is the file without which nobody reads the folder: it leaves first and enters last. So a process
    killed at any moment leaves the old files, the new ones, or a folder that is refused, whose old files lie in a
    folder `.old-...` inside. Where a single file differs, renaming it is all there is to do, and no such moment exists.

    Raises:
        OSError: a file cannot be moved; the old files are back in their places.
        CheckpointError: nor can the old files be moved back; it says where they are.
    """
    key, there = names[-1], {path.name for path in target.iterdir()}
    changed = [name for name in names if not _same_json(staged / name, target / name)]
    if len(changed) == 1 and not outdated:
        (staged / changed[0]).replace(target / changed[0])
        return
    entering = [*(name for name in changed if name != key), key]
    leaving = [name for name in (key, *outdated, *entering[:-1]) if name in there]
    aside = Path(tempfile.mkdtemp(dir=target, prefix=".old-"))
    moves: list[tuple[Path, Path]] = []
    try:
        for name in leaving:
            _move(target / name, aside / name, moves)
        for name in entering:
            _move(staged / name, target / name, moves)
    except BaseException:
        _undo(moves, aside)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _same_json(one: Path, other: Path) -> bool:
    """Whether two JSON files are equal; weights are always taken to differ, being too large to compare."""
    return one.suffix == ".json" and other.is_file() and one.read_bytes() == other.read_bytes()


def _move(source: Path, place: Path, moves: list[tuple[Path, Path]]) -> None:
    moves.append((source, place))  # before it is done: Ctrl-C may come between
    source.replace(place)


def _undo(moves: Sequence[tuple[Path, Path]], aside: Path) -> None:
    try:
        for source, place in reversed(moves):
            with suppress(FileNotFoundError):  # the move that failed
                place.replace(source)
        aside.rmdir()
    except OSError as exc:
        raise CheckpointError(
            f"{aside.parent}: files could be moved neither on nor back ({exc}); those of the earlier save are in "
            f"{aside.name}, move them back"
        ) from exc
