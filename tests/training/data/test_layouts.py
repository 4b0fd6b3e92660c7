"""Layouts are recognised by their columns, and turn into the same documents as the chat format."""

from __future__ import annotations

import json

import numpy as np
import pytest

from puna.errors import ConfigError, DataError
from puna.tokenizer import load_tokenizer
from puna.training.data.layouts.table import LAYOUTS as TABLE
from puna.training.data.preview import preview
from puna.training.data.read import DataOptions, read_examples
from tests.golden.files import LAYOUTS

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
    {"role": "user", "content": "Say hi\nin French"},
    {"role": "assistant", "content": "Salut"},
]

SAME_AS_CHAT = {
    "chat": {"messages": CHAT},
    "chat with text parts": {
        "messages": [{**CHAT[0], "content": [{"type": "text", "text": "Be brief."}]}, *CHAT[1:]],
    },
    "chat as JSON text": {"messages": json.dumps(CHAT)},
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."},
            {"from": "human", "value": "Say hi\nin French"}, {"from": "gpt", "value": "Salut"},
        ],
    },
    "sharegpt with a system message": {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "user", "value": "Who?"}, {"from": "assistant", "value": "Me."},
            {"from": "human", "value": "Say hi\nin French"}, {"from": "gpt", "value": "Salut"},
        ],
    },
    "conversations with roles": {"conversations": CHAT},
    "alpaca": {
        "instruction": "Say hi", "input": "in French", "output": "Salut", "system": "Be brief.",
        "history": [["Who?", "Me."]],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(LAYOUTS["hf"])


def read(rows, tokenizer, **options):
    data, report = read_examples(rows, tokenizer, DataOptions(**options))
    return list(data), report


@pytest.mark.parametrize("name", SAME_AS_CHAT)
def test_other_layouts_equal_the_chat(name, tokenizer):
    (expected,), _ = read([{"messages": CHAT}], tokenizer)
    (example,), report = read([SAME_AS_CHAT[name]], tokenizer)
    assert np.array_equal(example.ids, expected.ids) and np.array_equal(example.weights, expected.weights)
    assert report.format == name.split()[0].replace("conversations", "sharegpt") and report.is_chat


def test_prompts_of_messages_learn_the_completion_only(tokenizer):
    (all_answers,), _ = read([{"messages": CHAT}], tokenizer)
    (example,), report = read([{"prompt": CHAT[:-1], "completion": CHAT[-1:]}], tokenizer)
    assert report.format == "prompt" and np.array_equal(example.ids, all_answers.ids)
    first = int(np.flatnonzero(example.weights)[0])
    assert not all_answers.weights[first - 1] and np.array_equal(example.weights[first:], all_answers.weights[first:])
    assert all_answers.weights[:first].any()


def test_texts_that_look_like_json_stay_texts(tokenizer):
    (example,), _ = read([{"prompt": "[1, 2]", "completion": "[3]"}], tokenizer)
    assert tokenizer.decode(example.ids.tolist(), skip_special_tokens=True).replace(" ", "") == "[1,2][3]"


def test_columns_are_mapped(tokenizer):
    (expected,), _ = read([{"prompt": "a b", "completion": " c"}], tokenizer)
    rows = [{"question": "a b", "answer": " c", "text": "something else", "id": 3}]
    (example,), report = read(rows, tokenizer, columns={"prompt": "question", "completion": "answer"})
    assert report.format == "prompt" and np.array_equal(example.ids, expected.ids)
    assert report.unused == ("text", "id") and report.notes() == ["columns that are not used: 'text', 'id'"]
    preference = [{"prompt": "a b", "chosen": " c", "rejected": " d"}]
    assert np.array_equal(read(preference, tokenizer, columns={"completion": "chosen"})[0][0].ids, expected.ids)


@pytest.mark.parametrize(
    ("rows", "options", "error", "words"),
    [
        (
            [{"text": "a b"}],
            {"format": "chat"},
            DataError,
            r"row 1: the format chat needs messages; the row has 'text'",
        ),
        ([{"text": "a b"}], {"format": "chatt"}, ConfigError, r"format is 'chatt'; did you mean 'chat'\?"),
        ([{"text": "a b"}], {"columns": {"prmpt": "text"}}, ConfigError, r"'prmpt'; did you mean 'prompt'\?"),
        ([{"text": "a b"}], {"columns": {"text": "body"}}, DataError, r"columns names 'body' for text"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, DataError, r'"completion": "chosen"'),
        (
            [{"question": "a", "answer": "b"}],
            {},
            DataError,
            r'columns = \{"prompt": "question", "completion": "answer"\}',
        ),
    ],
)
def test_layouts_that_are_not_recognised_are_errors(rows, options, error, words, tokenizer):
    with pytest.raises(error, match=words):
        read(rows, tokenizer, **options)


def test_every_layout_is_recognised_by_its_columns(tokenizer):
    rows = {
        "chat": {"messages": CHAT}, "sharegpt": SAME_AS_CHAT["sharegpt"], "alpaca": SAME_AS_CHAT["alpaca"],
        "prompt": {"prompt": "a", "completion": "b"}, "text": {"text": "a b c"},
    }  # fmt: skip
    assert rows.keys() == TABLE.keys()
    for name, row in rows.items():
        assert read([row], tokenizer)[1].format == name
        assert read([row], tokenizer, format=name)[1].format == name


@pytest.mark.parametrize(
    ("truncate", "kept"), [("end", slice(0, 8)), ("start", slice(-8, None)), ("error", None), ("split", None)]
)
def test_long_documents_are_truncated_as_requested(truncate, kept, tokenizer):
    rows = [{"text": "one two three four five six seven eight nine"}]
    (complete,), _ = read(rows, tokenizer)
    count = len(complete.ids)
    assert count > 16
    if truncate == "error":
        with pytest.raises(DataError, match=rf"row 1: the document has {count} tokens; the limit is 8"):
            read(rows, tokenizer, max_length=8, truncate=truncate)
        return
    examples, report = read(rows, tokenizer, max_length=8, truncate=truncate)
    if truncate == "split":
        assert np.array_equal(np.concatenate([example.ids for example in examples]), complete.ids)
        assert all(example.weights[0] == 0 and example.weights[1:].all() for example in examples)
        assert report.split == 1 and not report.truncated
        return
    assert np.array_equal(examples[0].ids, complete.ids[kept]) and examples[0].weights.sum() == 7
    assert (report.truncated, report.removed) == (1, count - 8) and "1 row truncated" in report.notes()[0]


def test_an_answer_that_is_truncated_completely_is_an_error(tokenizer):
    rows = [{"prompt": "one two three four five six", "completion": " seven"}]
    with pytest.raises(DataError, match=r'row 1: no token is learned.*max_length is 8.*truncate to "start"'):
        read(rows, tokenizer, max_length=8)
    with pytest.raises(DataError, match="no token is learned"):
        read(rows, tokenizer, max_length=8, prompt_loss_weight=0.5)
    assert read(rows, tokenizer, max_length=8, truncate="start")[0][0].weights.any()


def test_text_files_become_windows(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("puna.training.data.readers.text_rows._PART", 60)
    text = "".join(f"The number {number} is here.\n" for number in range(40))
    (tmp_path / "a.txt").write_text(text)
    examples, report = read(tmp_path / "a.txt", tokenizer, max_length=16)
    ids = np.concatenate([example.ids for example in examples])
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert (ids == tokenizer.bos_token_id).sum() == 1 and not report.truncated
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert max(len(example.ids) for example in examples) <= 16
    assert examples[-1].source.row > 30 and report.format == "text"


def test_the_preview_divides_the_text_between_tokens(tokenizer):
    """Each piece is the text of its tokens, also around <0x5D>, which a streaming decoder holds back."""
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
        for text in ("a", "[x]", "世界", "é]", "<s>", "]]\n]", "日本語 ]")
    ]
    for sample in preview(rows, tokenizer, DataOptions(prompt_loss_weight=0.5), 10).samples:
        assert "".join(text for text, _ in sample.pieces) == tokenizer.decode(sample.ids.tolist())
        first, prompt, answer = (text for text, _ in sample.pieces)
        assert first == "<s>" and prompt.startswith(" [INST]") and prompt.endswith(" [/INST]"), sample.pieces
        assert answer.endswith(" </s>") and sample.learned == (sample.weights == 1).sum()


def test_progress_is_reported(tokenizer):
    calls = []
    rows = [{"text": "a b"}] * 300
    read_examples(rows, tokenizer, DataOptions(), lambda done, total: calls.append((done, total)))
    assert calls == [(128, 300), (256, 300), (300, 300)]


def test_rows_of_a_classifier_are_an_error_that_names_its_task():
    tokenizer = load_tokenizer(LAYOUTS["hf"])
    with pytest.raises(DataError, match=r"'message', 'kind'.*map your columns.*or use the task classify"):
        read_examples([{"message": "Where is my tent?", "kind": "shipping"}], tokenizer, DataOptions())
