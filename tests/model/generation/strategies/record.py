"""Records texts of releases of transformers that have strategies which the installed release does not have.

Usage: python -m tests.model.generation.strategies.record FAMILIES PYTHON ; FAMILIES are separated by commas, and PYTHON
is the interpreter of an environment with the release. It updates recorded.json, which has a list of outputs per family.
diverse, constrained and contrastive are those of 4.34.1; dola is that of 4.52.4. direct_beam_search and
direct_beam_sample are those of 4.34.1 for the calls of beam_search and beam_sample.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.model.generation.strategies.cases import golden_call, run_release

FILE = Path(__file__).parent / "recorded.json"
COUNT = 8


def main(families: list[str], python: Path) -> None:
    """Records `COUNT` calls of each family with the committed model."""
    records = json.loads(FILE.read_text()) if FILE.exists() else {}
    for family in families:
        calls = [golden_call(family.removeprefix("direct_"), number) for number in range(2 * COUNT + 4)]
        with tempfile.TemporaryDirectory() as folder:
            results = run_release(python, calls, Path(folder))
        # 4.34.1 fails if `output_scores` is set and too few texts satisfy the constraints.
        numbers = [number for number, result in enumerate(results) if "error" not in result][:COUNT]
        records[family] = [{"number": number, **_plain(results[number])} for number in numbers]
    FILE.write_text(json.dumps(records, indent=None, separators=(",", ":")).replace("],{", "],\n{") + "\n")


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    names = ("sequences", "sequences_scores")
    return {name: result[name].tolist() for name in names if result.get(name) is not None}


if __name__ == "__main__":
    main(sys.argv[1].split(","), Path(sys.argv[2]))
