"""Exports a model to OpenVINO: python -m peers.export_openvino NAME HF_FOLDER TARGET FORMAT.

Runs in OpenVINO's environment. FORMAT is one of
    int4   symmetric, one scale for 128 weights (64 or 32 if 128 does not divide the length of every row); embedding and
           head are int8. The 128 weights and int8 are defaults of optimum-intel
    int8   asymmetric, one scale per channel: optimum-intel's default
    float  float16 weights
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

from peers.shapes import SHAPES


def main() -> None:
    """Exports one model in one format."""
    name, source, target, kind = sys.argv[1:]
    quantization = {
        "int4": lambda: OVWeightQuantizationConfig(bits=4, sym=True, group_size=SHAPES[name].int4_group, ratio=1.0),
        "int8": lambda: OVWeightQuantizationConfig(bits=8),
        "float": lambda: None,
    }[kind]()
    unfinished = Path(f"{target}.part")
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, load_in_8bit=False if quantization is None else None, quantization_config=quantization,
        compile=False, use_cache=True, stateful=True,
    )  # fmt: skip
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    unfinished.rename(target)


if __name__ == "__main__":
    main()
