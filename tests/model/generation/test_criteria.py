"""Stopping criteria compared with those of transformers, and criteria of the caller."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

import puna
from puna.config import GenerationConfig
from puna.errors import PunaError
from puna.model.generation.criteria import build_criteria
from tests.helpers.vocabularies import CORPUS

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoint" / "hf"
IDS = torch.tensor([[5, 6, 2, 9], [5, 6, 7, 2], [3, 7, 7, 4]])
STOPS = [
    ["the"],
    [" a"],
    ["he ", "nd", "\n"],
    ["é"],
    ["日本", "🦙"],
    [". T"],
    ["stop", "o"],
    ["ing the"],
    ["<0x41>"],
    ["▁"],
]


def byte_level() -> Any:
    """Returns a byte-level BPE tokenizer of transformers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<plain é>", normalized=False)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def rows(tokenizer: Any) -> list[list[int]]:
    """Returns ids of texts, and random ids, some of them outside the vocabulary."""
    rng = random.Random(0)
    texts = [*CORPUS, "stop the top, and the other", "日本語 🦙🦙 é", "in the end. The\nstop"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return [*ids, *([rng.randrange(len(tokenizer) + 3) for _ in range(60)] for _ in range(3))]


def ends_of(criterion: Any, ids: list[int]) -> list[int]:
    """Returns the lengths at which the criterion ends a row."""
    return [n for n in range(1, len(ids) + 1) if bool(criterion(torch.tensor([ids[:n]]), None)[0])]


@pytest.fixture(scope="module", params=["golden", "byte-level"])
def tokenizers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """A tokenizer of transformers, and those of puna with the same vocabulary."""
    if request.param == "golden":
        names = [puna.LlamaTokenizer, puna.LlamaTokenizerFast, puna.AutoTokenizer]
        return transformers.AutoTokenizer.from_pretrained(GOLDEN), [kind.from_pretrained(GOLDEN) for kind in names]
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer = byte_level()
    tokenizer.save_pretrained(folder)
    return tokenizer, [puna.AutoTokenizer.from_pretrained(folder)]


@pytest.mark.parametrize("strings", STOPS)
def test_stop_strings_end_at_the_same_tokens_as_in_transformers(
    tokenizers: tuple[Any, list[Any]], strings: list[str]
) -> None:
    reference, ours = tokenizers
    expected = transformers.StopStringCriteria(reference, strings)
    criteria = [puna.StopStringCriteria(tokenizer, strings) for tokenizer in (reference, *ours)]
    for ids in rows(reference):
        ends = ends_of(expected, ids)
        for criterion in criteria:
            assert ends_of(criterion, ids) == ends


def test_some_stop_strings_occur(tokenizers: tuple[Any, list[Any]]) -> None:
    occurring = [
        strings
        for strings in STOPS
        if any(ends_of(puna.StopStringCriteria(tokenizers[1][0], strings), ids) for ids in rows(tokenizers[0]))
    ]
    assert len(occurring) >= 7


def test_several_rows_end_on_their_own(tokenizers: tuple[Any, list[Any]]) -> None:
    tokenizer = tokenizers[1][-1]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][-1:] for text in ("the", "a", " the")]
    criterion = puna.StopStringCriteria(tokenizer, "he")
    assert criterion(torch.tensor(ids), None).tolist() == [True, False, True]
    assert criterion.stop_strings == ("he",)


def test_stop_strings_that_cannot_occur_are_errors(tokenizers: tuple[Any, list[Any]]) -> None:
    for strings in ([], [""], ["a", ""], [3]):
        with pytest.raises(PunaError, match="must contain strings that are not empty"):
            puna.StopStringCriteria(tokenizers[1][0], strings)
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdef")}, []))
    letters.decoder = decoders.Fuse()
    few = transformers.PreTrainedTokenizerFast(tokenizer_object=letters)
    with pytest.raises(ValueError, match="unable to identify tokens"):
        transformers.StopStringCriteria(few, ["xyz"])
    with pytest.raises(PunaError, match=r"no token .* can end one of the stop_strings \['xyz'\]"):
        puna.StopStringCriteria(few, ["xyz"])
    assert puna.StopStringCriteria(few, ["xyz", "bc"])(torch.tensor([[1, 2]]), None).tolist() == [True]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *[("MaxLengthCriteria", {"max_length": length}) for length in (3, 4, 5)],
        *[("EosTokenCriteria", {"eos_token_id": ends}) for ends in (2, [2, 4], torch.tensor([4]))],
        ("MaxTimeCriteria", {"max_time": 100.0}),
        ("MaxTimeCriteria", {"max_time": 100.0, "initial_timestamp": time.time() - 200}),
    ],
)
def test_results_equal_those_of_transformers(name: str, arguments: dict[str, Any]) -> None:
    expected = getattr(transformers, name)(**arguments)(IDS, None)
    result = getattr(puna, name)(**arguments)(IDS, None)
    assert torch.equal(result, expected) and result.dtype == torch.bool
    assert bool(result) == bool(expected.all()), "as a condition, whether all rows have ended"
    assert type(~result) is Tensor and type(result | expected) is Tensor


def test_recent_tokens_are_examined_for_end_tokens() -> None:
    criterion = puna.EosTokenCriteria(2)
    assert criterion(IDS, None, new_token_length=2).tolist() == [True, True, False]


def test_max_length_warns_once_about_the_context() -> None:
    criterion = puna.MaxLengthCriteria(10, max_position_embeddings=3)
    with pytest.warns(UserWarning, match=r"4 tokens, more than the model's context .* 3"):
        assert not criterion(IDS, None)
    assert not criterion(IDS, None)  # no second warning, which would be an error


def test_max_new_tokens_is_deprecated() -> None:
    with pytest.warns(FutureWarning, match=r"use MaxLengthCriteria\(max_length=4\)"):
        criterion = puna.MaxNewTokensCriteria(start_length=3, max_new_tokens=1)
    assert criterion(IDS, None) and not criterion(IDS[:, :3], None)
    assert puna.StoppingCriteriaList([criterion]).max_length == 4


def test_confidence_equals_that_of_transformers() -> None:
    scores = torch.zeros(1, 10)
    scores[0, 9] = 1.5
    for threshold in (0.1, 0.3, 0.34, 0.5):
        expected = transformers.generation.ConfidenceCriteria(threshold)(IDS[:1], (None, scores))
        assert puna.ConfidenceCriteria(threshold)(IDS[:1], (None, scores)) is expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (True, [True, True, True]),
        (False, [False, True, False]),
        (torch.tensor([True, False, False]), [True, True, False]),
        (torch.tensor([[False], [False], [True]]), [False, True, True]),
        (torch.tensor(True), [True, True, True]),
        ([False, False, True], [False, True, True]),
    ],
)
def test_a_criterion_of_the_caller_returns_a_bool_or_one_per_row(result: Any, expected: list[bool]) -> None:
    calls = []

    class Own(puna.StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            calls.append((scores, kwargs))
            return result

    criteria = puna.StoppingCriteriaList([Own(), transformers.EosTokenCriteria([2])])
    assert criteria(IDS, "scores", other=3).tolist() == expected
    assert calls == [("scores", {"other": 3})]
    assert bool(criteria(IDS, None)) == all(expected)


def test_an_abstract_criterion_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="StoppingCriteria does not define __call__"):
        puna.StoppingCriteria()(IDS, None)


def test_validation_adds_the_maximum_length() -> None:
    criteria = puna.StoppingCriteriaList([puna.MaxTimeCriteria(5.0)])
    assert criteria.max_length is None
    validated = puna.validate_stopping_criteria(criteria, 11)
    assert len(criteria) == 1 and len(validated) == 2 and validated.max_length == 11
    with pytest.warns(UserWarning, match="end at 11 tokens, and max_length is 12"):
        assert len(puna.validate_stopping_criteria(validated, 12)) == 2
    assert len(puna.validate_stopping_criteria(validated, 11)) == 2
    foreign = puna.StoppingCriteriaList([transformers.MaxLengthCriteria(7)])
    assert foreign.max_length == 7


def test_criteria_are_built_from_settings() -> None:
    tokenizer = puna.AutoTokenizer.from_pretrained(GOLDEN)
    settings = GenerationConfig(
        max_time=3.0, stop_strings=["a"], eos_token_id=[2, 7], is_assistant=True, assistant_confidence_threshold=0.4
    )
    own = puna.MaxTimeCriteria(9.0)
    with pytest.warns(UserWarning, match="MaxTimeCriteria was passed to generate"):
        built = build_criteria(settings, 20, [own], tokenizer, max_position_embeddings=64)
    names = [type(item).__name__ for item in built]
    assert names == [
        "MaxLengthCriteria", "MaxTimeCriteria", "StopStringCriteria", "EosTokenCriteria", "ConfidenceCriteria"
    ]  # fmt: skip
    assert built.max_length == 20 and built[0].max_position_embeddings == 64 and built[1] is own
    assert build_criteria(GenerationConfig(), None) == []
    with pytest.raises(PunaError, match=r"stop_strings is \['a'\].* generate\(tokenizer=...\)"):
        build_criteria(settings, 20)
