"""Compares the speeds of converting and copying (`cp`) a checkpoint in Meta's layout with the shapes of LLaMA 65B.

    python benchmarks/convert.py FOLDER [--layers 3] [--repeat 3] [--tokenizer FILE]

The script writes random weights (float16, 8 shards; 1 GB plus 1.6 GB per layer) into FOLDER. It then alternates between
`cp --reflink=never` and a conversion to Hugging Face's layout, each followed by `sync`, and prints the medians, their
ratio, and the peak memory of the conversion (VmHWM). The page cache is not cleared between runs. FOLDER needs three
times the size of the weights and is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from puna.formats.blocks import FORMATS
from puna.formats.new_tensor import NewTensor
from puna.formats.torch_zip_writer import write_torch_zip

DIM, HEADS, FFN, VOCABULARY, SHARDS = 8192, 64, 22016, 32000, 8
_PIECE = 2**22


def random_bytes(seed: int, size: int) -> Iterator[np.ndarray]:
    """Yields `size` bytes of random float16 numbers between -1 and 1, in pieces."""
    generator = np.random.default_rng(seed)
    for start in range(0, size, _PIECE):
        bits = generator.integers(0, 2**16, min(_PIECE, size - start) // 2, np.uint16)
        yield (bits & 0xBBFF).view(np.uint8)  # exponent at most 14 (bias 15), so that |x| < 1


def write_model(folder: Path, layers: int) -> None:
    """Writes a checkpoint with the shapes of LLaMA 65B and `layers` layers, in Meta's layout."""
    folder.mkdir(parents=True)
    part = DIM // SHARDS
    for shard in range(SHARDS):
        shapes = {"tok_embeddings.weight": (VOCABULARY, part), "norm.weight": (DIM,),
                  "output.weight": (VOCABULARY // SHARDS, DIM)}  # fmt: skip
        for n in range(layers):
            prefix = f"layers.{n}."
            shapes |= {f"{prefix}attention_norm.weight": (DIM,), f"{prefix}ffn_norm.weight": (DIM,)}
            shapes |= {f"{prefix}attention.{name}.weight": (part, DIM) for name in ("wq", "wk", "wv")}
            shapes |= {
                f"{prefix}attention.wo.weight": (DIM, part),
                f"{prefix}feed_forward.w2.weight": (DIM, FFN // SHARDS),
            }
            shapes |= {f"{prefix}feed_forward.{name}.weight": (FFN // SHARDS, DIM) for name in ("w1", "w3")}
        tensors = []
        for index, (name, shape) in enumerate(shapes.items()):
            # Norms have the same seed, and so the same values, in every shard.
            seed = index if len(shape) == 1 else index * SHARDS + shard + 1000
            size = FORMATS["f16"].size(shape)
            tensors.append(NewTensor(name, FORMATS["f16"], shape, partial(random_bytes, seed, size)))
        write_torch_zip(folder / f"consolidated.{shard:02}.pth", tensors)
    params = {"dim": DIM, "multiple_of": 256, "n_heads": HEADS, "n_layers": layers, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))


def time_command(arguments: list[str], target: Path) -> tuple[float, str]:
    """Removes the target, then returns the seconds that a command and `sync` take, and the command's output."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    run = subprocess.run(arguments, check=True, capture_output=True, text=True)
    os.sync()
    return time.perf_counter() - started, run.stdout


_CONVERT = """
import re, sys
from puna import convert
convert(sys.argv[1], sys.argv[2], to="hf")
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder for the files; removed at the end.")
    parser.add_argument("--layers", type=int, default=3, help="Layers of the checkpoint.")
    parser.add_argument("--repeat", type=int, default=3, help="Copies and conversions to measure.")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model file to include in the checkpoint.")
    return parser.parse_args()


def main() -> None:
    """Writes the checkpoint, measures copies and conversions, and prints the results."""
    arguments = parse_arguments()
    source, copy, target = (arguments.folder / name for name in ("meta", "copy", "hf"))
    write_model(source, arguments.layers)
    if arguments.tokenizer:
        shutil.copy(arguments.tokenizer, source / "tokenizer.model")
    size = sum(path.stat().st_size for path in source.iterdir())
    largest = 2 * max(VOCABULARY, FFN) * DIM
    copies, conversions, peaks = [], [], []
    try:
        for _ in range(arguments.repeat):
            copies.append(time_command(["cp", "--reflink=never", "-r", str(source), str(copy)], copy)[0])
            shutil.rmtree(copy)
            seconds, output = time_command([sys.executable, "-c", _CONVERT, str(source), str(target)], target)
            conversions.append(seconds)
            peaks.append(int(output) * 1024)
            print(f"cp {copies[-1]:.1f} s, convert {conversions[-1]:.1f} s, peak {peaks[-1] / 1e6:.0f} MB", flush=True)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    ratio = statistics.median(copies) / statistics.median(conversions)
    print(f"{size / 1e9:.2f} GB: cp {statistics.median(copies):.1f} s, convert {statistics.median(conversions):.1f} s")
    print(f"speed relative to cp and sync: {ratio:.2f} (target: at least 0.60)")
    print(f"peak memory {max(peaks) / 1e6:.0f} MB; largest tensor {largest / 1e6:.0f} MB, limit "
          f"{(2 * largest + 200e6) / 1e6:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
