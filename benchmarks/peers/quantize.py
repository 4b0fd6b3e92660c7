"""Runs llama.cpp's quantiser: python -m peers.quantize FROM.gguf TO.gguf FORMAT.

Prints the seconds of the call. Runs in llama.cpp's environment.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import llama_cpp

FORMATS = {
    name.lower(): getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "BF16")
}


def main() -> None:
    """Quantises one file with llama.cpp's default mixture of types for the format."""
    source, path, name = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FORMATS[name], 2
    unfinished = f"{path}.part"
    started = time.perf_counter()
    if llama_cpp.llama_model_quantize(source.encode(), unfinished.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantise {source} to {name}")
    Path(unfinished).rename(path)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
