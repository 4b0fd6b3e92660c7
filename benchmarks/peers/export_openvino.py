"""Exports a folder to OpenVINO: python -m peers.export_openvino NAME HF_FOLDER TO FORMAT. Runs in its environment.

int4: symmetric, in groups of 128 where that divides the rows (else 64 or 32), embedding and head in int8, the way
optimum-intel does by default; int8: its default, asymmetric per channel; float: float16 constants.
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
    compressed = {
        "int4": lambda: OVWeightQuantizationConfig(bits=4, sym=True, group_size=SHAPES[name].int4_group, ratio=1.0),
        "int8": lambda: OVWeightQuantizationConfig(bits=8),
        "float": lambda: None,
    }[kind]()
    unfinished = Path(f"{target}.part")
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, load_in_8bit=False if compressed is None else None, quantization_config=compressed,
        compile=False, use_cache=True, stateful=True,
    )  # fmt: skip
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    unfinished.rename(target)


if __name__ == "__main__":
    main()
