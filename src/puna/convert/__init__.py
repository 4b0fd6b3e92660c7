"""Conversion of any LLaMA checkpoint into any layout, with only a few pieces of tensors in memory at a time.

`run` opens, plans, writes, verifies and publishes. `edit` changes the model's shape; `to_hf`, `to_meta` and `to_gguf`
list the files to write and their tensors; `lazy_rows` computes tensors while they are read.
"""

from puna.convert.options import LAYOUTS, Layout, Options
from puna.convert.plan import Plan
from puna.convert.run import Conversion, Converted, convert, convert_tokenizer

__all__ = ["LAYOUTS", "Conversion", "Converted", "Layout", "Options", "Plan", "convert", "convert_tokenizer"]
