"""llama.cpp's own quantiser: python -m peers.quantize FROM.gguf TO.gguf FORMAT. Runs in its environment."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp

FORMATS = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
}


def main() -> None:
    """Quantises one file with its default mixture of types."""
    source, path, name = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FORMATS[name], 2
    unfinished = f"{path}.part"
    if llama_cpp.llama_model_quantize(source.encode(), unfinished.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantise {source} to {name}")
    Path(unfinished).rename(path)


if __name__ == "__main__":
    main()
