"""Weight files of a repository by variant and kind."""

from __future__ import annotations

import pytest

from puna.errors import ModelNotFoundError
from puna.hub.choice import Selection
from puna.hub.reference import Reference

NAMES = [
    "config.json", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin",
    "pytorch_model.8bit-00001-of-00002.bin", "pytorch_model.8bit-00002-of-00002.bin",
    "inner/config.json", "inner/model.fp16.safetensors",
]  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "use_safetensors", "subfolder", "weights"),
    [
        (None, None, "", ["model.safetensors"]),
        (None, False, "", ["pytorch_model.bin"]),
        ("fp16", None, "", ["model.fp16.safetensors"]),
        ("fp16", True, "inner", ["inner/model.fp16.safetensors"]),
        ("8bit", None, "", NAMES[4:6]),
    ],
)
def test_weights_are_chosen(
    variant: str | None, use_safetensors: bool | None, subfolder: str, weights: list[str]
) -> None:
    selection = Selection("model", (), subfolder, Reference("owner/name"), variant, use_safetensors)
    config = f"{subfolder}/config.json".lstrip("/")
    assert selection.choose(NAMES) == [config, *weights]


def test_an_absent_variant_is_an_error() -> None:
    with pytest.raises(ModelNotFoundError, match="no weights"):
        Selection("model", (), "", Reference("owner/name"), "fp16", False).choose(NAMES)
