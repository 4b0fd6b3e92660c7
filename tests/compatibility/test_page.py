"""docs/compatibility.md is complete and up to date."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest

from tests.compatibility.evidence import find
from tests.compatibility.objects import recorded
from tests.compatibility.page import PAGE, text
from tests.compatibility.reasons import REASONS
from tests.compatibility.survey import ABSENT, Row, survey

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return survey()


def test_every_name_of_transformers_is_tested_or_has_a_reason(rows: list[Row]) -> None:
    assert [f"{row.cls}.{row.name}" for row in rows if row.proof is None] == []
    assert len(rows) > 1500


def test_the_page_is_up_to_date(rows: list[Row]) -> None:
    assert PAGE.read_text() == text(rows), "run make compatibility"


def test_every_reason_belongs_to_a_name() -> None:
    names = set(_names())
    unused = [pattern for pattern in REASONS if not any(fnmatchcase(name, pattern) for name in names)]
    assert unused == []


def test_a_missing_name_or_test_is_found() -> None:
    assert find(("a_name_that_no_test_uses",), ("config", "")) is None
    proof = find(("to_diff_dict",), ("config",))
    assert proof is not None and proof.file == "tests/config/test_pretrained_config.py"
    untested = Row("LlamaConfig", "a", ("method", ABSENT), "method", None)
    assert "**untested**" in text([untested])


def _names() -> Iterator[str]:
    for cls, names in recorded().items():
        for name, releases in names.items():
            yield f"{cls}.{name}"
            for release in releases.values():
                yield from (f"{cls}.{name}({argument})" for argument in release.get("arguments", {}))
