"""Writes docs/compatibility.md from the recorded names of transformers, puna's classes and the tests.

Usage: python -m tests.compatibility.page [--check]; with --check, exits with 1 if the page is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from tests.compatibility.record import MODELS
from tests.compatibility.survey import ABSENT, RELEASES, Row, survey

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"

_INTRODUCTION = f"""# Compatibility with transformers

`tests/compatibility/page.py` writes this page: `make compatibility`.

Every public attribute, method and argument of the LLaMA classes of transformers {RELEASES[0]} and {RELEASES[1]} and of
their superclasses, what puna has, and the test that shows it (in `tests/`) or the reason for a difference. Names of
PyTorch's `Module` are left out. Columns contain the value of a new object, the default of an argument, or *method*. `-`
means that there is no such name, *yes* a value or default that is an object, *any* that puna accepts the argument.

Two tests cover many rows: attributes have the value of a release (`test_attributes_have_the_value_of_a_release`), and
the documented default of an argument changes nothing (`test_the_default_of_an_argument_changes_nothing`).
"""

_DIFFERENCES = (
    ("scores of beams in `generate()`", "divided by the length with the prompt", "divided by the number of new tokens",
     "as 5.23"),
    ("scores of `model.beam_search` and `model.beam_sample`, of groups of beams and with constraints",
     "divided by the length with the prompt", "no such methods",
     "as 4.34, so that `generate()` and `model.beam_search` may rank texts differently"),
    ("`generate(inputs_embeds=...)` without ids", "returns BOS and the new tokens", "returns the new tokens",
     "as 5.23"),
    ("contrastive search of prompts with padding", "tokens are also compared with the states of padding",
     "no such search", "padding is ignored, so that a prompt has the same answer alone and in a batch"),
    ("`apply_chat_template(padding=True)`", "pads to `max_length`", "pads to the longest conversation", "as 5.23"),
    ("padding of an empty text alone, without special tokens, by the slow tokenizer", "does not pad", "pads",
     "as 5.23"),
    ("`InfNanRemoveLogitsProcessor`", "keeps minus infinity", "replaces it by the lowest number", "as 5.23"),
    ("`PhrasalConstraint.reset()`", "counts the first token as generated", "no such class",
     "returns to the start of the phrase"),
    ("files that lack tensors other than those of a head", "random values, with a warning",
     "random values, with a report", "an error"),
    ("`tokenizer_class` in files of `LlamaTokenizerFast`", "`LlamaTokenizer`", "`LlamaTokenizer`",
     "`PreTrainedTokenizerFast`, for which both releases use tokenizer.json unchanged"),
    ("a special token such as `<s>`, added again as a token that is not special and then saved and loaded",
     "is searched in the normalised text, so that most of its occurrences are not found", "is special", "as 5.23"),
    ("`AddedToken(..., special=True)` given to `add_tokens` of the fast tokenizer", "is not special", "is special",
     "as 5.23"),
    ("ids of several additional special tokens of one `add_special_tokens`", "their order depends on hash values",
     "in the order of the list", "as 5.23"),
    ("folders that 4.34 saved from `LlamaTokenizerFast(add_eos_token=True)`, which lack this setting",
     "loaded without EOS", "loaded with EOS, as in tokenizer.json", "as 4.34; puna saves the setting"),
    ("`GenerationConfig.save_pretrained` with a setting that has no effect, such as `temperature` without `do_sample`",
     "warns and writes nothing", "an error", "warns and writes the file"),
    ("`logits_processor` or `stopping_criteria` with an object of a class that the settings also require",
     "an error", "the object is used, with a warning", "as 5.23"),
    ("`assistant_confidence_threshold`", "no such setting", "adapted during a call if scikit-learn is installed",
     "constant, so that drawn tokens do not depend on installed packages"),
    ("names of loggers", "begin with `transformers.`", "begin with `transformers.`", "begin with `puna.`"),
)  # fmt: skip
"""Differences of behaviour between the releases or from both: behaviour, 4.34, 5.23, puna."""

_TITLES = {
    ("LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification"): "All models",
    ("LlamaTokenizer", "LlamaTokenizerFast"): "Both tokenizers",
}
_ORDER = ("LlamaConfig", "GenerationConfig", "LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification",
          "LlamaTokenizer", "LlamaTokenizerFast")  # fmt: skip


def text(rows: Iterable[Row]) -> str:
    """Returns the page."""
    merged: dict[tuple[str, str, tuple[str, str], str, str | None], list[str]] = {}
    for row in rows:
        merged.setdefault((_family(row.cls), row.name, row.releases, row.ours, row.proof), []).append(row.cls)
    sections: dict[tuple[str, ...], list[Row]] = {}
    for (_, name, releases, ours, proof), classes in merged.items():
        key = tuple(sorted(classes, key=_ORDER.index))
        sections.setdefault(key, []).append(Row(key[0], name, releases, ours, proof))
    table = "".join(f"| {' | '.join(row)} |\n" for row in _DIFFERENCES)
    heading = (
        f"\n## Behaviour that differs\n\n| behaviour | {RELEASES[0]} | {RELEASES[1]} | puna |\n|---|---|---|---|\n"
    )
    return (
        _INTRODUCTION
        + heading
        + table
        + "".join(_section(key, sections[key]) for key in sorted(sections, key=_position))
    )


def _family(cls: str) -> str:
    """Returns the same text for classes whose equal rows are shown once."""
    return "models" if cls in MODELS else cls.removesuffix("Fast")


def _position(classes: tuple[str, ...]) -> tuple[int, int]:
    return _ORDER.index(classes[0]), -len(classes)


def _section(classes: tuple[str, ...], rows: list[Row]) -> str:
    title = _TITLES.get(classes, ", ".join(f"`{name}`" for name in classes))
    return f"\n## {title}\n\n" + "".join(_tables(sorted(rows, key=lambda row: row.name)))


def _tables(rows: list[Row]) -> Iterator[str]:
    yield f"| name | {RELEASES[0]} | {RELEASES[1]} | puna | test or reason |\n|---|---|---|---|---|\n"
    for _, group in groupby(rows, key=lambda row: row.name.partition("(")[0]):
        for row in group:
            cells = (*(_value(value) for value in row.releases), _value(row.ours), _proof(row))
            yield f"| `{row.name}` | {' | '.join(cells)} |\n"


def _value(value: str) -> str:
    if value == ABSENT:
        return "-"
    if value in ("method", "accepted"):
        return "*any*" if value == "accepted" else "*method*"
    if value == '"<required>"':
        return "required"
    return "*yes*" if value.startswith('"<') else f"`{value}`".replace("|", "\\|")


def _proof(row: Row) -> str:
    if row.proof is None:
        return "**untested**"
    return f"`{row.proof}`" if "::" in row.proof else row.proof


def main() -> int:
    """Writes or checks the page; returns the exit status."""
    page = text(survey())
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text() != page)
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
