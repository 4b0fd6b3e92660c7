"""Model and generation configurations, in Hugging Face's file format. Needs only the standard library.

`puna.config.frequencies`, which needs NumPy, is imported separately.
"""

from puna.config.generation import GenerationConfig
from puna.config.generation_defaults import UNSUPPORTED, GenerationDefaults, generation_notes
from puna.config.llama import LlamaConfig

__all__ = ["UNSUPPORTED", "GenerationConfig", "GenerationDefaults", "LlamaConfig", "generation_notes"]
