"""`LLM.classify`: labels of texts, compared with the PyTorch class and with transformers."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from puna import LLM, AsyncLLM
from puna.checkpoint import inspect_checkpoint
from puna.classification import ClassificationHead
from puna.config.labels import last_token
from puna.errors import RequestError
from tests.helpers.classifiers import write_classifier
from tests.helpers.torch_files import BACKENDS, needs_torch

LONG = [5 + n % 40 for n in range(150)]
TEXTS = ["the llama", "grassland", "in the high grassland lives the llama", "x"]
PROBLEMS = [
    ("single_label_classification", 3), ("multi_label_classification", 3), ("regression", 3), (None, 3), (None, 1),
    ("regression", 1), ("multi_label_classification", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    return write_classifier(tiny_model, tmp_path_factory.mktemp("classifiers") / "three", 3, pad_token_id=9)


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request, folder):
    return LLM(folder, request.param)


@needs_torch
@pytest.mark.parametrize("library", ["puna", "transformers"])
def test_logits_equal_those_of_the_model(llm, folder, library):
    torch = pytest.importorskip("torch")
    model = pytest.importorskip(library).LlamaForSequenceClassification.from_pretrained(folder).eval()
    inputs = [*map(llm.tokenizer.encode, TEXTS), LONG, [7], [7, 9], [9, 7, 9, 9], [9, 8]]
    for ids, result in zip(inputs, llm.classify(inputs), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].double().numpy()
        assert np.abs(np.array(result.logits) - expected).max() < 1e-5 * np.abs(expected).max()
        assert result.label == model.config.id2label[int(expected.argmax())]


@needs_torch
@pytest.mark.parametrize(("problem", "labels"), PROBLEMS)
def test_scores_equal_those_of_a_pipeline_of_transformers(tiny_model, tmp_path, problem, labels):
    transformers = pytest.importorskip("transformers")
    folder = write_classifier(tiny_model, tmp_path / "model", labels, problem_type=problem, pad_token_id=9)
    pipeline = transformers.pipeline("text-classification", str(folder), top_k=None, device="cpu")
    for text, result in zip(TEXTS, LLM(folder).classify(TEXTS), strict=True):
        expected = {item["label"]: item["score"] for item in pipeline([text])[0]}
        assert dict(zip(result.labels, result.scores, strict=True)) == pytest.approx(expected, abs=1e-5)
        assert result.label == max(expected, key=lambda label: expected[label])


def test_scores_of_large_logits_are_finite():
    state = np.array([1.0], np.float32)
    for problem, expected in (("single_label_classification", [1, 0]), ("multi_label_classification", [1, 0])):
        head = ClassificationHead(np.array([[1e4], [-1e4]], np.float32), ["a", "b"], problem)
        assert head.classify(state).scores == pytest.approx(expected)
        assert str(head.classify(state)) == "a"


def test_labels_have_the_names_of_the_configuration(llm):
    (result,) = llm.classify("the llama")
    assert result.labels == ("kind 0", "kind 1", "kind 2")
    assert result.label == result.labels[int(np.argmax(result.scores))]
    assert sum(result.scores) == pytest.approx(1)


def test_the_classification_of_a_text_does_not_depend_on_the_batch(llm):
    inputs = [*TEXTS, LONG, [7], LONG[::-1]]
    alone = [llm.classify(item)[0] for item in inputs]
    llm._engine.scheduler.chunk = 37
    together = llm.classify(inputs)
    llm._engine.scheduler.chunk = 512
    for result, expected in zip(together, alone, strict=True):
        if llm.backend == "native":
            assert result == expected
        assert result.logits == pytest.approx(expected.logits, abs=1e-5)


def test_trailing_padding_is_not_read(llm):
    assert llm.classify([[7, 8, 9, 9]]) == llm.classify([[7, 8]])
    assert last_token([7, 8, 9, 9], 9) == 1
    assert last_token([9, 8, 9], None) == 2
    assert last_token([9, 9], 9) == 1


def test_a_classifier_generates_nothing(llm):
    words = r"no language-model head \(its head: classification\), .*; use embed or classify, or load"
    calls = [llm.generate, llm.chat, llm.stream, llm.start, lambda text: llm.stream_batch([text])]
    calls += [lambda text: llm.nll([1, 2]), lambda text: llm.logits([1]), lambda text: llm.score("a", ["b"])]
    calls.append(lambda text: next(llm.iter_logits([1, 2])))
    for call in calls:
        with pytest.raises(RequestError, match=words):
            call("the llama")
    assert llm.embed("the llama").shape == (1, 48)


def test_a_language_model_classifies_nothing(tiny_model):
    with pytest.raises(RequestError, match=r"no classification head \(its head: lm\); load a LlamaForSequenceClass"):
        LLM(tiny_model).classify("the llama")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "inputs is empty"),
        (None, "inputs is None"),
        ([[]], "the prompt has no tokens"),
        ([10**6], "token id 1000000 is not in the vocabulary"),
        (LONG * 2, "exceed the model's context"),
    ],
)
def test_wrong_inputs_are_errors(llm, inputs, words):
    with pytest.raises(RequestError, match=words):
        llm.classify(inputs)


def test_asyncio_has_the_same_labels(llm, folder):
    assert asyncio.run(AsyncLLM(folder, llm.backend).classify(TEXTS)) == llm.classify(TEXTS)


def test_inspect_names_the_head(folder):
    report = inspect_checkpoint(folder)
    assert report.head == "classification"
    assert any("cannot generate text" in warning for warning in report.warnings)


def test_a_tied_configuration_changes_nothing(tiny_model, tmp_path):
    """A classifier has no head that could be tied; its configuration may claim one."""
    tied = write_classifier(tiny_model, tmp_path / "tied", 3, tie_word_embeddings=True)
    plain = write_classifier(tiny_model, tmp_path / "plain", 3)
    assert json.loads((tied / "config.json").read_text())["tie_word_embeddings"]
    assert LLM(tied).classify(TEXTS) == LLM(plain).classify(TEXTS)
    assert LLM(plain).config.tie_word_embeddings is False
