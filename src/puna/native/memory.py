"""What memory this process may still take, so that a model that does not fit is refused before it is read."""

from __future__ import annotations

from pathlib import Path

from puna.errors import BackendError

CACHE_SHARE = 0.9
"""Of the memory that the weights leave, the most that caches may take."""

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, within the control group's limit; None where the system does not say.

    Page cache counts as available: the system gives it up.
    """
    try:
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
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
    """What each limit leaves: of this process's control group, and of those around it."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:  # number:controllers:/path
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _GROUPS / "memory" if controllers else _GROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            rooms.append(_room(folder, version=1 if controllers else 2))
            if folder == root:
                break
    return [room for room in rooms if room is not None]


def _room(group: Path, version: int) -> int | None:
    """Kernel documentation "cgroup-v2" (memory.max) and "Memory Resource Controller" (memory.limit_in_bytes)."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in names)
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no such group, or "max"
        return None
    prefix = "total_" if version == 1 else ""
    files = (f"{prefix}inactive_file", f"{prefix}active_file")
    cached = sum(int(count) for name, _, count in (line.partition(" ") for line in lines) if name in files)
    return max(0, limit - max(0, used - cached))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
