"""Reads mutated files in processes with limits: each file must load, or raise an error of puna.

    python -m tests.fuzz.run [--count 20000] [--seed 1] [--jobs 2] [--kinds gguf,config] [--folder FOLDER]
    python -m tests.fuzz.run --case config-1-17        # one case, with its traceback

Case `KIND-SEED-NUMBER` is the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MEMORY = 2 * 2**30
"""Limit of the address space of a process, in bytes."""

SECONDS = 10
"""Time limit for one case, in seconds."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread of a BLAS reserves address space
ENVIRONMENT |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RUST_BACKTRACE": "0"}


def cases(kinds: list[str], seed: int, count: int) -> Iterator[tuple[str, int]]:
    """Yields (kind, number) of `count` cases, each kind in proportion to its share."""
    from tests.fuzz.cases import KINDS

    total = sum(KINDS[kind].share for kind in kinds)
    for kind in kinds:
        for number in range(max(1, round(count * KINDS[kind].share / total))):
            yield kind, number


def read_case(name: str, seeds: Path, work: Path) -> None:
    """Writes and reads one case."""
    from tests.fuzz.cases import KINDS

    kind = name.split("-")[0]
    rng = random.Random(name)
    path = KINDS[kind].write(rng, seeds, work)
    KINDS[kind].read(rng, path)


def outcome(name: str, seeds: Path, work: Path) -> str:
    """Reads one case in a process with limits; returns "loaded", "refused: ...", or a failure."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "model").mkdir(parents=True)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _read_in_child(name, seeds, work / "model", write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"HANG: {SECONDS} s" if number == signal.SIGALRM else f"ABORT: {signal.Signals(number).name}"
    return answer or f"ABORT: exit {os.waitstatus_to_exitcode(status)}"


def _read_in_child(name: str, seeds: Path, work: Path, write: int) -> None:
    from puna.errors import PunaError

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        read_case(name, seeds, work)
        text = "loaded"
    except PunaError as exc:
        text = f"refused: {type(exc).__name__}: {str(exc).replace(str(work), '')[:80]}"
    except BaseException as exc:
        frames = traceback.extract_tb(exc.__traceback__)[-3:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        text = f"FOREIGN: {type(exc).__name__}: {str(exc)[:200]} at {where}"
    os.write(write, text.encode("utf-8", "backslashreplace")[:4000])
    os._exit(0)


def run(count: int, seed: int, jobs: int, kinds: list[str], folder: Path) -> dict[str, object]:
    """Reads `count` cases; returns the number of results of each kind, and the failures."""
    seeds = folder / "seeds"
    if not seeds.exists():
        subprocess.run([sys.executable, "-m", "tests.fuzz.seeds", str(seeds)], check=True)
    import tests.fuzz.cases  # noqa: F401  # loaded once, before the processes are forked

    all_cases = list(cases(kinds, seed, count))
    random.Random(seed).shuffle(all_cases)
    files = [folder / f"results-{job}" for job in range(jobs)]
    for job, file in enumerate(files):
        if os.fork() == 0:
            with file.open("w", buffering=1) as lines:
                for kind, number in all_cases[job::jobs]:
                    name = f"{kind}-{seed}-{number}"
                    lines.write(json.dumps([kind, name, outcome(name, seeds, folder / f"work-{job}")]) + "\n")
            os._exit(0)
    for _ in files:
        os.wait()
    results: Counter[str] = Counter()
    messages: set[str] = set()
    failures = []
    for file in files:
        for line in file.read_text().splitlines():
            kind, name, text = json.loads(line)
            results[f"{kind} {text.split(':')[0]}"] += 1
            messages.add(text)
            if not text.startswith(("loaded", "refused")):
                failures.append(f"{name}: {text}")
    return {"results": dict(sorted(results.items())), "different_messages": len(messages), "failures": sorted(failures)}


def main() -> int:
    os.environ |= ENVIRONMENT
    from tests.fuzz.cases import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--folder", type=Path, help="where the seeds and the last files are kept")
    parser.add_argument("--case", help="reads one case in this process and shows its traceback")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = arguments.folder or Path(temporary)
        if arguments.case:
            run(0, 0, 0, [], folder)
            work = folder / "case"
            shutil.rmtree(work, ignore_errors=True)
            (work / "model").mkdir(parents=True)
            read_case(arguments.case, folder / "seeds", work / "model")
            return 0
        start = time.monotonic()
        summary = run(arguments.count, arguments.seed, arguments.jobs, arguments.kinds.split(","), folder)
    failures = summary["failures"]
    assert isinstance(failures, list)
    print(json.dumps(summary, indent=1))
    print(f"{len(failures)} failures, {time.monotonic() - start:.0f} s")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
