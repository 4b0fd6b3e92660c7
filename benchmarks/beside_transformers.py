"""Speed of `LLM` on PyTorch beside transformers, on the same weights and threads, in one run, as ratios.

Prefill and decode alternate between the two, so that a slow minute of the machine meets both; medians of `--repeat`.

    python benchmarks/beside_transformers.py [--model PATH] [--prefill 128] [--decode 32] [--repeat 5]
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


def seconds(run: Callable[[], None]) -> float:
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
    ours = LLM(path, "torch", threads)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM.from_pretrained(path).save_pretrained(folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [1 + at % 1000 for at in range(wanted.prefill)]
    ids = torch.tensor([prompt])

    def run_theirs(new: int) -> None:
        with torch.inference_mode():
            theirs.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    def run_ours(new: int) -> None:
        ours.generate(prompt, max_tokens=new)

    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(wanted.repeat + 1):
        for new in (1, 1 + wanted.decode):
            for name, run in (("puna", run_ours), ("transformers", run_theirs)):
                took = seconds(lambda run=run, new=new: run(new))
                if turn:  # the first turn warms up
                    times.setdefault((name, new), []).append(took)

    prefill = {name: statistics.median(times[name, 1]) for name in ("puna", "transformers")}
    whole = {name: statistics.median(times[name, 1 + wanted.decode]) for name in ("puna", "transformers")}
    speeds = {
        f"prefill {wanted.prefill}": {name: wanted.prefill / prefill[name] for name in prefill},
        f"decode {wanted.decode}": {name: wanted.decode / (whole[name] - prefill[name]) for name in prefill},
    }
    table = Table(title=f"tokens per second, float32, {threads} threads, transformers {transformers.__version__}")
    for column in ("work", "puna", "transformers", "ratio"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for work, speed in speeds.items():
        ratio = speed["puna"] / speed["transformers"]
        table.add_row(work, f"{speed['puna']:.1f}", f"{speed['transformers']:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
