"""Builds the processor of a watermark from its configuration."""

from __future__ import annotations

from typing import Any

from puna.config.generation.watermarks import (
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
    read_watermarking_config,
)
from puna.errors import RequestError
from puna.model.generation.processors.base import Processor
from puna.model.generation.processors.synthid import SynthIDTextWatermarkLogitsProcessor
from puna.model.generation.processors.watermark import WatermarkLogitsProcessor


def watermark_processor(config: Any, vocab_size: int, device: Any) -> Processor:
    """Returns the processor of a configuration: an object of this package or of transformers, or a dictionary.

    Raises:
        RequestError: the value is not a configuration.
        ConfigError: a setting is unknown or out of range.
    """
    config = read_watermarking_config(config)
    if type(config).__name__ not in ("WatermarkingConfig", "SynthIDTextWatermarkingConfig"):
        raise RequestError(
            f"watermarking_config is {config!r}; it must be a WatermarkingConfig, a SynthIDTextWatermarkingConfig, or "
            "the dictionary of one"
        )
    own: WatermarkingConfig | SynthIDTextWatermarkingConfig = read_watermarking_config(config.to_dict())
    own.validate()
    if isinstance(own, SynthIDTextWatermarkingConfig):
        return SynthIDTextWatermarkLogitsProcessor(device=device, **own.to_dict())
    return WatermarkLogitsProcessor(vocab_size, device, **own.to_dict())
