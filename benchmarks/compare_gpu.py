"""Compares `TorchBackend` on a GPU with transformers: tokens per second of decoding in bfloat16, with random weights.

Both run the same weights of a LLaMA with 1.1 billion parameters. transformers decodes with a static cache of exactly
the needed length and a forward pass that is compiled with CUDA graphs (`mode="reduce-overhead"`); its loop chooses
tokens on the GPU and never waits for them. Three loops run puna: "logits" calls `TorchBackend.forward` and chooses the
most likely tokens on the CPU, "tokens" lets `TorchBackend` choose them on the GPU and reads them after each step, and
"engine" also schedules as `LLM` does. The loops run in turn: once to compile, then `--repeat` times; the table shows
the medians of the latter.

    python benchmarks/compare_gpu.py [--rows 1 16] [--context 512] [--new 128] [--repeat 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from puna import LlamaConfig, LlamaForCausalLM
from puna.backend import Chunk, consecutive_pages
from puna.engine import Engine, Request, Sampling
from puna.model import TorchBackend

SHAPES = {
    "1.1B": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 200,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """The task of every loop: `rows` sequences of `context` tokens generate `new` tokens."""

    rows: int
    context: int
    new: int
    device: torch.device

    def prompts(self, vocab_size: int) -> np.ndarray:
        """Returns random ids, (rows, context)."""
        return np.random.default_rng(0).integers(3, vocab_size, (self.rows, self.context))

    def seconds(self, run: Callable[[], object]) -> float:
        """Returns the seconds that one call takes, including its work on the GPU."""
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def run_backend(backend: TorchBackend, work: Work, output: Literal["logits", "token"]) -> float:
    """Decodes with `TorchBackend.forward`; returns tokens per second."""
    prompts, end = work.prompts(backend.config.vocab_size), work.context + work.new
    pages = [consecutive_pages(end, row) for row in range(work.rows)]
    chunks = [Chunk(*pair, 0) for pair in zip(pages, prompts, strict=True)]
    tokens = backend.forward(chunks).logits.argmax(-1).astype(np.int64)

    def decode() -> None:
        nonlocal tokens
        for position in range(work.context, end):
            chunks = [Chunk(pages[row], tokens[row : row + 1], position, output=output) for row in range(work.rows)]
            outputs = backend.forward(chunks)
            tokens = outputs.tokens if output == "token" else outputs.logits.argmax(-1)

    return work.rows * work.new / work.seconds(decode)


def run_engine(backend: TorchBackend, work: Work) -> float:
    """Decodes with `Engine.step`; returns tokens per second."""
    engine = Engine(backend, work.rows, chunk=work.rows * work.context, prefix_cache=False)
    for prompt in work.prompts(backend.config.vocab_size).tolist():
        engine.submit(Request(tuple(prompt), work.new, Sampling()))
    started: set[int] = set()
    while len(started) < work.rows:
        started.update(event.request_id for event in engine.step() if event.token is not None)
    generated = 0

    def decode() -> None:
        nonlocal generated
        while len(engine.scheduler.running) == work.rows:
            generated += len(engine.step())

    seconds = work.seconds(decode)
    while engine.busy:
        engine.step()
    return generated / seconds


class Reference:
    """transformers with a static cache and a compiled forward pass."""

    def __init__(self, model: transformers.LlamaForCausalLM, work: Work) -> None:
        self.model = model
        self.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True, dynamic=False)
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=work.context + work.new)

    @torch.no_grad()
    def run(self, work: Work) -> float:
        """Decodes; returns tokens per second."""
        self.cache.reset()
        ids = torch.from_numpy(work.prompts(self.model.config.vocab_size)).to(work.device)
        tokens = self.model(ids, past_key_values=self.cache, logits_to_keep=1).logits.argmax(-1)

        def decode() -> None:
            nonlocal tokens
            for _ in range(work.new):
                torch.compiler.cudagraph_mark_step_begin()
                tokens = self.forward(tokens, past_key_values=self.cache).logits[:, -1:].argmax(-1)

        return work.rows * work.new / work.seconds(decode)


def load_models(shape: str, context: int, device: torch.device) -> tuple[LlamaForCausalLM, object]:
    """Returns the model as a class of puna and of transformers; they share the weights."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=context, dtype="bfloat16")
    torch.manual_seed(0)
    with device:
        reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_dict()))
    rotary = reference.model.rotary_emb
    frequencies = rotary.inv_freq.clone()
    reference = reference.to(torch.bfloat16).eval()
    rotary.inv_freq = frequencies  # `from_pretrained` does not round them either
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(reference.state_dict(), assign=True)
    return model.to(device).eval(), reference


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="Numbers of sequences.")
    parser.add_argument("--context", type=int, default=512, help="Tokens of each prompt.")
    parser.add_argument("--new", type=int, default=128, help="Tokens to generate in each sequence.")
    parser.add_argument("--repeat", type=int, default=5, help="Measurements of each loop.")
    parser.add_argument("--shape", choices=SHAPES, default="1.1B", help="Shape of the model.")
    parser.add_argument("--device", default="cuda", help="PyTorch's device.")
    return parser.parse_args()


def main() -> None:
    """Measures each loop with each number of rows, and prints a table."""
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    model, reference = load_models(arguments.shape, arguments.context + arguments.new, device)
    backend = TorchBackend(model, max(arguments.rows))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    table = Table(title=f"tokens/s on {name}, torch {torch.__version__}, transformers {transformers.__version__}")
    for column in ("sequences", "logits", "tokens", "engine", "transformers"):
        table.add_column(column, justify="right")
    for rows in arguments.rows:
        work = Work(rows, arguments.context, arguments.new, device)
        baseline = Reference(reference, work)
        loops: dict[str, Callable[[], float]] = {
            "logits": lambda work=work: run_backend(backend, work, "logits"),
            "tokens": lambda work=work: run_backend(backend, work, "token"),
            "engine": lambda work=work: run_engine(backend, work),
            "transformers": lambda work=work, baseline=baseline: baseline.run(work),
        }
        speeds: dict[str, list[float]] = {loop: [] for loop in loops}
        for turn in range(arguments.repeat + 1):
            for loop, run in loops.items():
                started = time.perf_counter()
                speed = run()
                print(f"{rows} {loop}: {speed:.1f} ({time.perf_counter() - started:.1f} s)", flush=True)
                if turn:
                    speeds[loop].append(speed)
        medians = {loop: statistics.median(values) for loop, values in speeds.items()}
        ratios = [f"{speed:.1f} ({speed / medians['transformers']:.2f} x)" for speed in medians.values()]
        table.add_row(str(rows), *ratios)
        torch.compiler.reset()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
