"""Model and generation configurations, in Hugging Face's file format. Needs only the standard library."""

from puna.config.generation import GenerationConfig
from puna.config.llama import LlamaConfig

__all__ = ["GenerationConfig", "LlamaConfig"]
