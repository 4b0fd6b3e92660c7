"""What memory this process may still take, so that a model that does not fit is refused before it is read."""

from __future__ import annotations

from pathlib import Path

from puna.errors import BackendError

CACHE_SHARE = 0.9
"""Of the memory that the weights leave, the most that caches may take."""

_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, within the control group's limit; None where the system does not say.

    Page cache counts as available: the system gives it up.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([int(kibibytes) * 1024, *_group_room()])


def cache_pages(weights: int, wanted: int, page_bytes: int) -> int:
    """How many of `wanted` pages of cache fit beside `weights` bytes.

    Raises:
        BackendError: when the weights, or one page beside them, do not fit.
    """
    available = available_memory()
    if available is None:
        return wanted
    if weights + page_bytes > available:
        raise BackendError(
            f"the model takes {_gigabytes(weights)} packed, and {_gigabytes(available)} of memory are available; "
            "free memory, or take a smaller or quantised model (--quantize q8_0, q4_0 or q4_K for float files)"
        )
    return max(1, min(wanted, int((available - weights) * CACHE_SHARE) // page_bytes))


def _group_room() -> list[int]:
    return [room for limit, used in _GROUPS for room in [_room(limit, used)] if room is not None]


def _room(limit: Path, used: Path) -> int | None:
    try:
        return max(0, int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
