"""How the behaviours of one vocabulary encode the same text; for `puna tokenize --explain`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from puna.tokenizer.arguments import Arguments, Behaviour
from puna.tokenizer.fast import LlamaTokenizerFast
from puna.tokenizer.files.recipes import auto_recipe, has_sentencepiece, sentencepiece_recipe

if TYPE_CHECKING:
    from puna.tokenizer.slow import LlamaTokenizer

MEANINGS = {
    "sp": "SentencePiece's own ids: special tokens in a text are text (load_tokenizer and the commands of puna)",
    "hf-legacy": "LlamaTokenizer of transformers 4.34: special tokens are tokens; text after them gets a space",
    "hf": "LlamaTokenizer(legacy=False): special tokens are tokens; no space is added or removed after them",
    "tokenizer.json": "the pipeline in tokenizer.json, or the one that LlamaTokenizerFast builds (AutoTokenizer)",
}
"""A description of each behaviour, in the order of the output."""

_SENTENCEPIECE: tuple[Behaviour, ...] = ("sp", "hf-legacy", "hf")


@dataclass(frozen=True)
class Encoded:
    """A text encoded with one behaviour.

    Attributes:
        difference: index of the first id that differs from those of the first behaviour; None if all are the same.
        text: the decoded text, without special tokens.
    """

    ids: list[int]
    pieces: list[str]
    text: str
    difference: int | None


def behaviours(path: Path) -> dict[str, LlamaTokenizer | LlamaTokenizerFast]:
    """Returns the tokenizers of a path by the name of their behaviour, those of SentencePiece first."""
    result: dict[str, LlamaTokenizer | LlamaTokenizerFast] = {}
    if has_sentencepiece(path):
        from puna.tokenizer.slow import LlamaTokenizer

        recipe = sentencepiece_recipe(path, Arguments())
        recipe.arguments.pop("legacy", None)
        for behaviour in _SENTENCEPIECE:
            result[behaviour] = LlamaTokenizer.from_recipe(replace(recipe, behaviour=behaviour))
    return result | {"tokenizer.json": LlamaTokenizerFast.from_recipe(auto_recipe(path, Arguments()))}


def explain(path: Path, text: str, special: bool) -> dict[str, Encoded]:
    """Encodes a text with each behaviour of a path.

    Args:
        special: whether to add tokens such as BOS.
    """
    result: dict[str, Encoded] = {}
    first: list[int] | None = None
    for name, tokenizer in behaviours(path).items():
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special)
        first = ids if first is None else first
        difference = _first_difference(first, ids)
        pieces = [tokenizer.convert_ids_to_tokens(index) for index in ids]
        result[name] = Encoded(ids, pieces, tokenizer.decode(ids, skip_special_tokens=True), difference)
    return result


def _first_difference(first: list[int], second: list[int]) -> int | None:
    if first == second:
        return None
    differences = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))
