"""Paths of the golden checkpoint: a LLaMA of 0.6 MB trained by train.py, with the values that expect.py recorded.

The files are committed, so that every clone is tested against the same numbers. puna's own code wrote none of them. The
text was written for these tests. Text and weights have the repository's licence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TEXT = FOLDER / "text.txt"
HELD_OUT = FOLDER / "held_out.txt"
EXPECTED = FOLDER / "expected.json"

LAYOUTS = {
    "hf": FOLDER / "checkpoint" / "hf",
    "gguf": FOLDER / "checkpoint" / "model.gguf",
    "meta": FOLDER / "checkpoint" / "meta",
}
TOKENIZER = LAYOUTS["hf"] / "tokenizer.model"
"""SentencePiece BPE with Llama 2's settings and 512 pieces; the Meta folder holds the same file."""

RECORDS = {release: FOLDER / f"tokenizer_{release}.json" for release in ("4.34.1", "5.23.0")}
"""Files with the results of two releases of transformers for the golden vocabulary."""


def read_expected() -> dict[str, Any]:
    """Returns the recorded values; the docstring of expect.py describes them."""
    return json.loads(EXPECTED.read_text())
