"""Speed of both backends of `LLM` beside transformers, on the same float32 weights and threads, in one run, as ratios.

Prefill and decode take turns, so that a slow minute of the machine meets all three; medians of `--repeat`.

    python benchmarks/compare_transformers.py [--model PATH] [--prefill 128] [--decode 32] [--repeat 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import transformers
from rich.console import Console
from rich.table import Table

from puna import LLM, LlamaForCausalLM
from puna.checkpoint import locate_model
from puna.native import machine


def seconds(run: Callable[[], object]) -> float:
    """How long one run takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Loads the model twice and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    wanted = parser.parse_args()
    path = locate_model(wanted.model)
    threads = machine().physical_cores
    models = {backend: LLM(path, backend, threads) for backend in ("native", "torch")}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM.from_pretrained(path).save_pretrained(folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [1 + at % 1000 for at in range(wanted.prefill)]
    ids = torch.tensor([prompt])

    def run_theirs(new: int) -> None:
        with torch.inference_mode():
            theirs.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    runs: dict[str, Callable[[int], object]] = {
        "puna native": lambda new: models["native"].generate(prompt, max_tokens=new),
        "puna torch": lambda new: models["torch"].generate(prompt, max_tokens=new),
        "transformers": run_theirs,
    }
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(wanted.repeat + 1):
        for new in (1, 1 + wanted.decode):
            for name, run in runs.items():
                took = seconds(lambda run=run, new=new: run(new))
                if turn:  # the first turn warms up
                    times.setdefault((name, new), []).append(took)

    prefill = {name: statistics.median(times[name, 1]) for name in runs}
    whole = {name: statistics.median(times[name, 1 + wanted.decode]) for name in runs}
    speeds = {
        f"prefill {wanted.prefill}": {name: wanted.prefill / prefill[name] for name in runs},
        f"decode {wanted.decode}": {name: wanted.decode / (whole[name] - prefill[name]) for name in runs},
    }
    table = Table(title=f"tokens per second, float32, {threads} threads, transformers {transformers.__version__}")
    table.add_column("work")
    for name in runs:
        table.add_column(name, justify="right")
    for work, speed in speeds.items():
        cells = [f"{value:.1f} ({value / speed['transformers']:.2f} x)" for value in speed.values()]
        table.add_row(work, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
