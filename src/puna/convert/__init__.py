"""Conversion of any LLaMA checkpoint into any layout, with only a few pieces of tensors in memory at a time.

`run` opens the source, plans the files, writes and verifies them, and renames them to the target. `edit` changes the
model's shape; `to_hf`, `to_meta` and `to_gguf` list the files and their tensors; `lazy_rows` computes these tensors.
`merging` writes a model with the changes of an adapter.
"""

from puna.convert.merging import Merged, merge
from puna.convert.options import LAYOUTS, Layout, Options
from puna.convert.plan import Plan
from puna.convert.run import Conversion, Converted, convert, convert_tokenizer

__all__ = [
    "LAYOUTS",
    "Conversion",
    "Converted",
    "Layout",
    "Merged",
    "Options",
    "Plan",
    "convert",
    "convert_tokenizer",
    "merge",
]
