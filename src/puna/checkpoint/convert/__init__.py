"""Any LLaMA checkpoint into any other, in memory bounded by pieces of its tensors.

`rows` reads tensors some rows at a time and changes them on the way; `to_hf`, `to_meta` and `to_gguf` say which files
hold them; `staging` keeps an unfinished result from looking finished; `options` says what is asked and `plan` what will
happen; `run` puts these together.
"""

from puna.checkpoint.convert.options import LAYOUTS, Layout, Options
from puna.checkpoint.convert.plan import Plan
from puna.checkpoint.convert.run import Calibration, Conversion, convert_checkpoint, convert_tokenizer

__all__ = [
    "LAYOUTS",
    "Calibration",
    "Conversion",
    "Layout",
    "Options",
    "Plan",
    "convert_checkpoint",
    "convert_tokenizer",
]
