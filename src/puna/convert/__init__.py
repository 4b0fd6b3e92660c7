"""Conversion of any LLaMA checkpoint into any layout, in memory bounded by pieces of its tensors.

`options` holds what the user requests and `plan` what will happen; `lazy_rows` reads tensors a few rows at a time and
changes them on the way; `to_hf`, `to_meta` and `to_gguf` decide which files hold which tensors; `run` does the work.
"""

from puna.convert.api import Converted, convert
from puna.convert.options import LAYOUTS, Layout, Options
from puna.convert.plan import Plan
from puna.convert.run import Calibration, Conversion, convert_checkpoint, convert_tokenizer

__all__ = [
    "LAYOUTS",
    "Calibration",
    "Conversion",
    "Converted",
    "Layout",
    "Options",
    "Plan",
    "convert",
    "convert_checkpoint",
    "convert_tokenizer",
]
