"""Memory that this process uses, and memory that it can still allocate.

A model that needs more is rejected before its weights are read.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from puna.errors import BackendError, show_bytes

CACHE_SHARE = 0.9
"""The caches use at most this fraction of the memory that remains after loading the weights."""

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Returns the bytes that can be allocated without swapping; None if unknown.

    They are limited by the control groups and by the process's limit (ulimit -v). The page cache counts as available,
    since the system reclaims it.
    """
    try:
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([int(kibibytes) * 1024, *_available_in_groups(), *_available_in_process()])


def resident_memory() -> int:
    """Returns the memory of this process in bytes: the resident set on Linux, elsewhere its maximum so far."""
    try:
        pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_memory()
    return pages * resource.getpagesize()


def peak_memory() -> int:
    """Returns the maximum memory of this process so far, in bytes."""
    try:
        lines = (_PROC / "self" / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0) * 1024


def cache_pages(weights: int, requested: int, page_bytes: int) -> int:
    """Returns how many of the requested pages of cache fit in memory in addition to `weights` bytes.

    Raises:
        BackendError: if the weights and one page do not fit.
    """
    available = available_memory()
    if available is None:
        return requested
    if weights + page_bytes > available:
        raise BackendError(
            f"the packed weights take {show_bytes(weights)}, but only {show_bytes(available)} of memory is available; "
            "free memory, raise the limit of this process (ulimit -v), or use a smaller or quantised model (for float "
            "files, quantize q8_0, q4_0 or q4_K)"
        )
    return max(1, min(requested, int((available - weights) * CACHE_SHARE) // page_bytes))


def _available_in_process() -> list[int]:
    """Returns the bytes of address space that the process may still map; empty if there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[0])
    return [max(0, limit - pages * resource.getpagesize())]


def _available_in_groups() -> list[int]:
    """Returns the bytes available within each limit: of this process's control group and of each parent group."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    sizes = []
    for line in lines:  # number:controllers:/path
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _GROUPS / "memory" if controllers else _GROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            sizes.append(_available_in_group(folder, version=1 if controllers else 2))
            if folder == root:
                break
    return [size for size in sizes if size is not None]


def _available_in_group(group: Path, version: int) -> int | None:
    """Returns the bytes that a group may still use. See Linux's "cgroup-v2" and "Memory Resource Controller" pages."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in names)
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # the group does not exist, or its limit is "max"
        return None
    prefix = "total_" if version == 1 else ""
    files = (f"{prefix}inactive_file", f"{prefix}active_file")
    cached = sum(int(count) for name, _, count in (line.partition(" ") for line in lines) if name in files)
    return max(0, limit - max(0, used - cached))
