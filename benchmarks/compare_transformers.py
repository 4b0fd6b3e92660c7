"""Compares puna with transformers: tokens per second with the same weights and threads.

The engines take turns, so that a slow minute of the machine affects all of them. The tables show medians of `--repeat`
runs and their ratios to transformers. By default, the script compares both backends of `LLM` in float32. With
`--generate`, it compares `model.generate()` of both libraries for random weights of a 1.1B model in bfloat16, from the
call to its return.

    python benchmarks/compare_transformers.py [--model PATH] [--prefill 128] [--decode 32] [--repeat 5]
    python benchmarks/compare_transformers.py --generate [--batch 1 8] [--prefill 32] [--decode 64] [--repeat 3]
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

from puna import LLM, LlamaConfig, LlamaForCausalLM
from puna.checkpoint import locate_model
from puna.native import machine
from puna.native.measure import measure_machine

SHAPE = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    vocab_size=32000,
)
"""The shape of TinyLlama 1.1B."""


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
    parser.add_argument("--generate", action="store_true", help="Compare model.generate() in bfloat16.")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="Numbers of prompts for --generate.")
    return parser.parse_args()


def print_speeds(title: str, speeds: dict[str, dict[str, float]]) -> None:
    """Prints tokens per second of each engine, by kind of work, and the ratios to transformers."""
    table = Table(title=f"tokens per second, {title}, transformers {transformers.__version__}")
    table.add_column("work")
    for name in next(iter(speeds.values())):
        table.add_column(name, justify="right")
    for work, speed in speeds.items():
        table.add_row(work, *(f"{value:.1f} ({value / speed['transformers']:.2f} x)" for value in speed.values()))
    Console().print(table)


def compare_backends(arguments: argparse.Namespace, threads: int) -> None:
    """Compares both backends of `LLM` with transformers, in float32."""
    path = locate_model(arguments.model)
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
    print_speeds(f"float32, {threads} threads", speeds)


def random_models() -> dict[str, torch.nn.Module]:
    """Returns a model of puna and one of transformers, which share random weights in bfloat16."""
    with torch.device("meta"):
        model = LlamaForCausalLM(SHAPE)
        reference = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(SHAPE.to_dict()))
    values = torch.randn(1 << 20).mul_(0.02).bfloat16()  # repeated, since drawing all of them would take long
    state = {}
    for name, tensor in model.state_dict().items():
        flat = values.repeat(-(-tensor.numel() // len(values)))[: tensor.numel()]
        state[name] = torch.ones_like(tensor, device="cpu", dtype=torch.bfloat16) if "norm" in name else flat
        state[name] = state[name].view(tensor.shape)
    model.load_state_dict(state, assign=True)
    reference.load_state_dict(state, assign=True)
    reference.model.rotary_emb = type(reference.model.rotary_emb)(reference.config)  # not on the meta device
    return {"puna": model.eval(), "transformers": reference.eval()}


def compare_generate(arguments: argparse.Namespace, threads: int) -> None:
    """Compares `model.generate()` of both libraries. Packing the weights is not measured."""
    models = random_models()
    speeds: dict[str, dict[str, float]] = {}
    for batch in arguments.batch:
        ids = torch.randint(3, SHAPE.vocab_size, (batch, arguments.prefill))

        def run(name: str, new: int, ids: torch.Tensor = ids) -> None:
            models[name].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )

        times: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(arguments.repeat + 1):
            for name in models:
                duration = seconds(lambda name=name, run=run, turn=turn: run(name, arguments.decode if turn else 2))
                if turn:  # the first turn packs the weights
                    times[name].append(duration)
        work = f"batch {batch}, {arguments.prefill} + {arguments.decode} tokens"
        speeds[work] = {name: batch * arguments.decode / statistics.median(taken) for name, taken in times.items()}
    bandwidth = measure_machine(threads).dram_gb_s
    title = f"bfloat16, {threads} threads, {bandwidth:.0f} GB/s, path {models['puna'].generation_path}"
    print_speeds(title, speeds)


def main() -> None:
    """Measures the speeds and prints a table."""
    arguments = parse_arguments()
    threads = machine().physical_cores
    torch.set_num_threads(threads)
    (compare_generate if arguments.generate else compare_backends)(arguments, threads)


if __name__ == "__main__":
    main()
