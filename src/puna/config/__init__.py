"""Configurations, as Hugging Face's files spell them. Needs nothing but the standard library."""

from puna.config.generation import GenerationConfig
from puna.config.llama import LlamaConfig

__all__ = ["GenerationConfig", "LlamaConfig"]
