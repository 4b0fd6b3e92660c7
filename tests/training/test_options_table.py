"""The table of options in docs/training.md; `python -m tests.training.test_options_table` writes it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from puna.training.settings import GROUPS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
START = "writes this table.\n"


def table() -> str:
    """Returns the generated part of the page."""
    parts = []
    for name, group in GROUPS.items():
        title = "At the beginning of the file" if name == "run" else f"[{name}]"
        rows = [
            f"| `{item.name}` | {item.metadata['text'].replace('|', chr(92) + '|')} | {shown(item.default)} |\n"
            for item in fields(group)
        ]
        parts.append(f"\n### {title}\n\n| setting | meaning | default |\n|---|---|---|\n{''.join(rows)}")
    return "".join(parts)


def shown(value: object) -> str:
    """Returns a default as in TOML."""
    if value in (None, (), ""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_page_has_every_setting():
    assert PAGE.read_text().partition(START)[2] == table()


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(START)[0] + START + table())
