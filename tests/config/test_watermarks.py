"""The settings of watermarks as a field of `GenerationConfig`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from puna import GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig
from puna.errors import ConfigError

SYNTHID = {"ngram_len": 5, "keys": [654, 400, 836]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"bias": 3.0}, WatermarkingConfig(bias=3.0)), (SYNTHID, SynthIDTextWatermarkingConfig(**SYNTHID))],
)
def test_a_dictionary_becomes_an_object_and_is_saved_as_one(
    settings: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    config = GenerationConfig(watermarking_config=settings)
    assert config.watermarking_config == expected and type(config.watermarking_config) is type(expected)
    assert copy.deepcopy(config) == config and hash(config) == hash(GenerationConfig(watermarking_config=expected))
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["watermarking_config"] == expected.to_dict()
    assert GenerationConfig.from_pretrained(tmp_path).watermarking_config == expected
    config.watermarking_config = {"bias": 1.0}
    assert config.watermarking_config.bias == 1.0


def test_saved_settings_are_read_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    GenerationConfig(watermarking_config={"bias": 3.0, "context_width": 2}).save_pretrained(tmp_path)
    reference = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert reference.watermarking_config.to_dict() == WatermarkingConfig(bias=3.0, context_width=2).to_dict()
    reference.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).watermarking_config.context_width == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeding_scheme": "right"}, "seeding_scheme is 'right'"),
        ({"greenlist_ratio": 1.5}, "greenlist_ratio is 1.5"),
        ({"context_width": 0}, "context_width is 0"),
        ({"colour": "green"}, "WatermarkingConfig does not accept"),
        (3, "watermarking_config is 3"),
        ({**SYNTHID, "sampling_table_size": 2**25}, "sampling_table_size is 33554432"),
    ],
)
def test_invalid_settings_are_errors_or_ignored_in_files(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(watermarking_config=settings)
    (tmp_path / "generation_config.json").write_text(json.dumps({"watermarking_config": settings}))
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config.watermarking_config is None
    assert len(config.unusable) == 1 and message in config.unusable[0]
