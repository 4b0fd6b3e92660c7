"""`puna.convert` remains the function after the subpackage of the same name is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.meta_models import FAMILIES, hf_tensors, write_meta

PACKAGE_FIRST = "import puna.convert.plan"
FUNCTION_FIRST = "from puna import convert\nconvert"
HELP_FIRST = "from puna.cli import app\napp(['convert', '--help'], standalone_mode=False)"
CONVERSION_FIRST = (
    "from puna.cli import app\napp(['convert', sys.argv[1], sys.argv[2] + '0', '--to', 'hf'], standalone_mode=False)"
)


@pytest.mark.parametrize("first", [PACKAGE_FIRST, FUNCTION_FIRST, HELP_FIRST, CONVERSION_FIRST])
def test_the_function_is_found_after_any_order_of_imports(first: str, tmp_path: Path) -> None:
    family = FAMILIES[0]
    write_meta(tmp_path / "in", family, hf_tensors(family))
    code = f"""
import sys
{first}
import puna
puna.convert(sys.argv[1], sys.argv[2] + "1")
from puna import convert
convert(sys.argv[1], sys.argv[2] + "2")
import puna.convert.plan
from puna.convert import plan
assert plan is sys.modules["puna.convert.plan"]
puna.convert(sys.argv[1], sys.argv[2] + "3")
from puna import convert as imported_last
assert imported_last is puna.convert is convert is sys.modules["puna.convert"].convert
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "in"), str(tmp_path / "out")], check=True)
    configs = {(tmp_path / f"out{number}" / "config.json").read_text() for number in (1, 2, 3)}
    assert len(configs) == 1
