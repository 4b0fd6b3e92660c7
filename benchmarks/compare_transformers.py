"""Compares both backends of `LLM` with transformers: tokens per second with the same float32 weights and threads.

The engines take turns, so that a slow minute of the machine affects all three. The table shows medians of `--repeat`
runs and their ratios to transformers.

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
    """Returns the seconds that one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="Model to run; default: puna's default model.")
    parser.add_argument("--prefill", type=int, default=128, help="Tokens of the prompt.")
    parser.add_argument("--decode", type=int, default=32, help="Tokens to generate.")
    parser.add_argument("--repeat", type=int, default=5, help="Measurements of each engine.")
    return parser.parse_args()


def main() -> None:
    """Loads the model three times, measures the speeds and prints the table."""
    arguments = parse_arguments()
    path = locate_model(arguments.model)
    threads = machine().physical_cores
    models = {backend: LLM(path, backend, threads) for backend in ("native", "torch")}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM.from_pretrained(path).save_pretrained(folder)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [1 + at % 1000 for at in range(arguments.prefill)]
    ids = torch.tensor([prompt])

    def run_transformers(new: int) -> None:
        with torch.inference_mode():
            reference.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    runs: dict[str, Callable[[int], object]] = {
        "puna native": lambda new: models["native"].generate(prompt, max_tokens=new),
        "puna torch": lambda new: models["torch"].generate(prompt, max_tokens=new),
        "transformers": run_transformers,
    }
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(arguments.repeat + 1):
        for new in (1, 1 + arguments.decode):
            for name, run in runs.items():
                duration = seconds(lambda run=run, new=new: run(new))
                if turn:  # the first turn warms up
                    times.setdefault((name, new), []).append(duration)

    # Generating one token takes the time of the prefill; 1 + N tokens additionally take the decoding of N tokens.
    prefill = {name: statistics.median(times[name, 1]) for name in runs}
    total = {name: statistics.median(times[name, 1 + arguments.decode]) for name in runs}
    speeds = {
        f"prefill {arguments.prefill}": {name: arguments.prefill / prefill[name] for name in runs},
        f"decode {arguments.decode}": {name: arguments.decode / (total[name] - prefill[name]) for name in runs},
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
