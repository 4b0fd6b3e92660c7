"""Perplexity of documents, compared with losses of complete sequences and with the windows of lm-eval."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from puna import LLM
from puna.errors import DataError
from puna.evaluation.likelihood import encode_pair, rolling_windows, score_pairs
from puna.evaluation.perplexity import evaluate_perplexity, read_documents, rolling_likelihood
from tests.cli.test_cli import as_json
from tests.golden.files import LAYOUTS

TEXTS = ["the llama lives in the grass", "a herd of llamas", "é"]


@pytest.fixture(scope="module")
def llm():
    with LLM(LAYOUTS["hf"], "native") as model:
        yield model


def served(llm, ids, known=1):
    """Returns the sum of the log-probabilities that a server returns, which are close to the losses in float64."""
    tokens = llm.generate(ids, max_tokens=1, temperature=0, prompt_logprobs=0).prompt_logprobs[known:]
    value = sum(token.logprob for token in tokens)
    assert value == pytest.approx(-llm.nll(ids)[known - 1 :].sum(), rel=1e-8)
    return value


def test_metrics_are_sums_of_the_losses_of_all_tokens(llm):
    prefix = llm.tokenizer.bos_token_id
    ids = [llm.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    total = -sum(served(llm, [prefix, *item]) for item in ids)
    metrics = evaluate_perplexity(llm, TEXTS)
    assert metrics["documents"] == 3 and metrics["tokens"] == sum(map(len, ids))
    assert metrics["nll"] == pytest.approx(total / metrics["tokens"], rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["nll"]), rel=1e-12)
    size = sum(len(text.encode()) for text in TEXTS)
    assert metrics["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-12)
    assert metrics["byte_perplexity"] == pytest.approx(2 ** metrics["bits_per_byte"], rel=1e-12)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(total / 11), rel=1e-12)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9, 12, 13])
def test_windows_predict_every_token_once_with_full_context(count):
    ids = list(range(100, 100 + count))
    windows = list(rolling_windows(ids, 1, 5))
    assert [token for _, predicted in windows for token in predicted] == ids
    full = [1, *ids]
    for index, (context, predicted) in enumerate(windows):
        end = full.index(predicted[-1]) + 1
        assert full[max(0, end - 5) : end] == [*context, *predicted]
        assert index == 0 or len(context) + len(predicted) == 5


@pytest.mark.parametrize("count", [1, 7, 8, 30])
def test_windows_are_those_of_lm_eval(count):
    utils = pytest.importorskip("lm_eval.utils")
    ids = list(range(100, 100 + count))
    expected = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 1, 7, 1))
    assert [(list(a), list(b)) for a, b in rolling_windows(ids, 1, 8)] == [(list(a), list(b)) for a, b in expected]


def test_long_documents_are_read_in_windows(llm):
    text = "the llama lives in the high grassland " * 20
    value, count = rolling_likelihood(llm, text, limit=16)
    ids = llm.tokenizer.encode(text, add_special_tokens=False)
    expected = 0.0
    for context, predicted in rolling_windows(ids, llm.tokenizer.bos_token_id, 16):
        expected += served(llm, [*context, *predicted], len(context))
    assert value == expected and count == len(ids)
    assert value != pytest.approx(rolling_likelihood(llm, text)[0], rel=1e-3)


def test_likelihoods_say_whether_a_continuation_is_the_greedy_one(llm):
    context = llm.tokenizer.encode("the llama")
    answer = list(llm.generate("the llama", max_tokens=4, temperature=0).ids)
    other = [answer[0], (answer[1] + 1) % llm.config.vocab_size]
    results = score_pairs(llm, [(context, answer), (context, other), (context, [])])
    assert [result.greedy for result in results] == [True, False, True]
    assert results[0].value == pytest.approx(llm.score(context, [answer])[0]) and results[2].value == 0


def test_contexts_that_are_too_long_lose_their_first_tokens(llm):
    limit = llm.longest_text()
    context = [5 + index % 40 for index in range(limit + 30)]
    (result,) = score_pairs(llm, [(context, [7, 8])])
    assert result.value == pytest.approx(llm.score(context[-(limit - 2) :], [[7, 8]])[0], rel=1e-8)


def test_spaces_belong_to_the_continuation_and_an_empty_context_is_bos(llm):
    assert encode_pair(llm, "the llama ", "lives") == encode_pair(llm, "the llama", " lives")
    context, ids = encode_pair(llm, "", "llama")
    assert context == [llm.tokenizer.bos_token_id] and ids == llm.tokenizer.encode("llama", add_special_tokens=False)


def test_the_command_reads_a_text_or_the_rows_of_a_data_set(llm, tmp_path):
    (tmp_path / "text.txt").write_text(TEXTS[0])
    arguments = ["-m", str(LAYOUTS["hf"]), "--backend", "native"]
    result = as_json("eval", "perplexity", str(tmp_path / "text.txt"), *arguments)
    assert result == evaluate_perplexity(llm, TEXTS[:1])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    result = as_json("eval", "perplexity", str(tmp_path / "rows.jsonl"), *arguments)
    assert result == evaluate_perplexity(llm, TEXTS)
    assert read_documents([{"x": "a"}], {"text": "x"}) == ["a"]
    with pytest.raises(DataError, match=r"row 1: the column 'text' is None; it must be a text. The columns are 'x'"):
        read_documents([{"x": "a"}])
    assert np.isfinite(result["word_perplexity"])
