"""Pretraining of a small model of characters: puna, and a GPT of nanoGPT's shape with nanoGPT's settings for CPUs.

Usage: python -m benchmarks.train_pretrain TEXT [--steps N] [--rounds N] [--only puna|peer]

TEXT is tinyshakespeare (github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt). The programs alternate, each in
a new process: 4 layers, 4 heads, width 128, context 64, batch 12, AdamW with beta2 0.99, warm-up of 100 steps, cosine
from 1e-3 to 1e-4. nanoGPT publishes a validation loss of 1.88 after 2,000 steps. Prints a JSON object per run: seconds
of the training without evaluations, and the loss of all windows of the last tenth of the text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run_puna(text: Path, steps: int) -> dict[str, Any]:
    """Trains a tokenizer of characters and a model in an empty folder."""
    import torch

    from puna import train
    from puna.training.tokenizer.train import train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        times = []
        start = time.perf_counter()
        train_tokenizer([text], Path(folder) / "tokenizer", "char")
        result = train(
            None, text, "pretrain", tokenizer=Path(folder) / "tokenizer", output=Path(folder) / "model", steps=steps,
            depth=4, heads=4, width=128, max_length=64, batch_size=12, learning_rate=1e-3, schedule="cosine",
            final_rate=0.1, warmup=100, beta2=0.99, weight_decay=0.1, eval_share=0.1, seed=1337,
            callbacks=[lambda event: times.append(time.perf_counter()) if "loss" in event else None],
        )  # fmt: skip
        total = time.perf_counter() - start
    return {
        "program": "puna",
        "steps": steps,
        "seconds": times[-1] - start,
        "total_seconds": total,
        "validation_loss": result.metrics["loss"],
        "threads": torch.get_num_threads(),
    }


def run_peer(text: Path, steps: int) -> dict[str, Any]:
    """Trains the GPT of `benchmarks/peers/small_gpt.py`."""
    from benchmarks.peers.small_gpt import train

    result = train(text.read_text(encoding="utf-8"), steps)
    return {
        "program": "peer",
        "steps": steps,
        "seconds": result["seconds"] - result["evaluating_seconds"],
        "total_seconds": result["seconds"],
        "validation_loss": result["complete_validation_loss"],
    }


def main() -> None:
    """Runs one program, or both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=("puna", "peer"))
    arguments = parser.parse_args()
    if arguments.only:
        run = run_puna if arguments.only == "puna" else run_peer
        print(json.dumps(run(arguments.text, arguments.steps)), flush=True)
        return
    for _ in range(arguments.rounds):
        for name in ("puna", "peer"):
            command = [sys.executable, "-m", "benchmarks.train_pretrain", str(arguments.text)]
            subprocess.run([*command, "--steps", str(arguments.steps), "--only", name], check=True)


if __name__ == "__main__":
    main()
