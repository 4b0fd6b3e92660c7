"""Model and generation configurations, in Hugging Face's file format. Needs only the standard library.

`puna.config.frequencies`, which needs NumPy, is imported separately.
"""

from puna.config.generation.config import GenerationConfig
from puna.config.generation.defaults import GenerationDefaults, generation_notes
from puna.config.generation.fields import GenerationOptions
from puna.config.generation.mode import GenerationMode
from puna.config.llama import LlamaConfig
from puna.config.pretrained import PreTrainedConfig, PretrainedConfig
from puna.config.sampling import MAX_LOGPROBS, Distribution, Sampling, SamplingOptions

__all__ = [
    "MAX_LOGPROBS",
    "Distribution",
    "GenerationConfig",
    "GenerationDefaults",
    "GenerationMode",
    "GenerationOptions",
    "LlamaConfig",
    "PreTrainedConfig",
    "PretrainedConfig",
    "Sampling",
    "SamplingOptions",
    "generation_notes",
]
