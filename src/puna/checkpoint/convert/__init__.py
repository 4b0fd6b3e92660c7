"""Any LLaMA checkpoint into any other, in memory bounded by pieces of its tensors.

`rows` reads tensors some rows at a time and changes them on the way; `to_hf`, `to_meta` and `to_gguf` say which files
hold them; `staging` keeps an unfinished result from looking finished; `run` puts these together.
"""

from puna.checkpoint.convert.run import Calibration, Conversion, Options, Plan, convert_checkpoint, convert_tokenizer

__all__ = ["Calibration", "Conversion", "Options", "Plan", "convert_checkpoint", "convert_tokenizer"]
