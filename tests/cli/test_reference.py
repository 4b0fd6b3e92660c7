"""The help of every command, and docs/command.md, which contains the fields of each command's JSON.

`python -m tests.cli.test_reference` writes the second part of docs/command.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer

from puna.cli import app
from puna.cli.group import COMMANDS
from tests.cli.test_cli import as_json, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command.md"
START = "from the help texts.\n"
NAMES = {name: text for commands in COMMANDS.values() for name, (_, text) in commands.items()}


def callback(name: str):
    """Returns the function of a subcommand."""
    return find_command(name).callback


def find_command(name: str):
    """Returns a command, such as "generate", or of a group, such as "train sft"."""
    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    return command


def fields(name: str) -> list[str]:
    """Returns the documented names of the fields of a subcommand's JSON."""
    return [field for group in callback(name).fields for field in group.split(", ")]


def sections() -> str:
    """Returns the generated part of docs/command.md."""
    parts = []
    for name in NAMES:
        rows = "".join(
            f"| `{field.replace(', ', '`, `')}` | {text} |\n" for field, text in callback(name).fields.items()
        )
        parts.append(f"\n### puna {name}\n\n| field | meaning |\n|---|---|\n{rows}")
    return "".join(parts)


def test_the_page_contains_the_fields_of_the_help():
    assert PAGE.read_text().partition(START)[2] == sections()


def test_the_table_of_contents_has_the_first_sentences_of_the_help():
    contents = " ".join(run("--help").stdout.split())
    for name, text in NAMES.items():
        assert callback(name).__doc__.splitlines()[0] == text
        assert f"{name} {text.removesuffix('.')}" in contents


@pytest.mark.parametrize("name", NAMES)
def test_every_help_page_has_examples_and_the_common_options(name):
    page = run(*name.split(), "--help").stdout
    for part in ("Examples:", "--json", "-q, --quiet", "-v, --verbose", "Fields of --json:"):
        assert part in page
    for line in callback(name).examples:
        assert line in page
        assert f"puna {name}" in line


def option_names(name: str) -> set[str]:
    return {option for param in find_command(name).params for option in param.opts}


@pytest.mark.parametrize("name", NAMES)
def test_examples_use_existing_options(name):
    for line in callback(name).examples:
        used = re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.partition(f"puna {name}")[2])
        assert set(used) <= option_names(name), line


@pytest.mark.parametrize("name", NAMES)
def test_values_of_options_are_described_in_plain_english(name):
    page = " ".join(run(*name.split(), "--help").stdout.split())
    assert not re.search(r"<(int|float|str|path)\b|range|x[<>]=", page)
    if "--threads" in page:
        assert "[from 1 to 256]" in page
    for param in find_command(name).params:
        assert "IntRange" not in repr(param.type) and param.type.name not in ("int", "float"), "use options.number"


def test_choices_are_shown():
    assert "<auto|native|torch>" in run("generate", "--help").stdout
    assert "<q8_0|q4_0|q4_K>" in run("bench", "--help").stdout
    assert "<hf|meta|gguf>" in run("convert", "--help").stdout


def test_the_documented_fields_are_printed(tiny_model, tmp_path):
    (tmp_path / "text").write_text("the llama lives in the high grassland")
    model = ["-m", str(tiny_model)]
    outputs = {
        "generate": as_json("generate", "x", "-n", "1", *model),
        "run": as_json("run", str(tiny_model), "x", "-n", "1"),
        "tokenize": as_json("tokenize", "x", "--explain", *model),
        "inspect": as_json("inspect", str(tiny_model)),
        "info": as_json("info"),
        "perplexity": as_json("perplexity", str(tmp_path / "text"), *model),
        "list": as_json("list"),
        "chat": json.loads(run("chat", "--json", "-n", "1", *model, input='"x"').stdout),
    }
    for name, output in outputs.items():
        assert sorted(output) == sorted(fields(name)), name


def test_the_documented_fields_of_a_conversion_are_printed(tiny_model, tmp_path):
    out = as_json("convert", str(tiny_model), str(tmp_path / "out"), "--dtype", "float16")
    assert set(out) == set(fields("convert")) - {"target"}
    out = as_json("convert", str(tiny_model), str(tmp_path / "tokens"), "--tokenizer-only")
    assert set(out) == {"target", "notes"}


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(START)[0] + START + sections())
