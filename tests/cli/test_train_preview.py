"""`puna train preview`: the text of the ids with the learned tokens, lengths, and bad rows with their lines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from puna.tokenizer import load_tokenizer
from puna.training.data.preview import histogram
from puna.training.data.read import DataOptions, read_examples
from tests.cli.test_cli import as_json, run
from tests.cli.test_reference import callback
from tests.golden.files import LAYOUTS

MODEL = ("-m", str(LAYOUTS["hf"]))
GOOD = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me, 世界."}]}
LONG = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So " * 60}]}


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [GOOD, {"messages": GOOD["messages"][:1]}, LONG]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"mess')
    return path


def test_learned_text_is_marked_without_colours(chats):
    result = run("train", "preview", str(chats), *MODEL, "--max-length", "100")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{chats}, line 1: ") and lines[0].endswith(" learned")
    assert lines[1].replace(" ", "") == "<s>[INST]Who?[/INST][[Me,世界.</s>]]"
    assert "tokens removed" in lines[3]
    assert f"{chats}: 4 rows of the format chat" in lines
    assert "1 row truncated" in result.stdout and "max_length is 100" in result.stdout
    assert "2 rows that cannot be used" in lines
    assert [line.split(": ")[0] for line in lines[-2:]] == [f"  {chats}, line 2", f"  {chats}, line 4"]


def test_learned_text_is_green(chats, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    text = run("train", "preview", str(chats), *MODEL, "--prompt-loss-weight", "0.5").stdout
    assert "\x1b[32m" in text and "\x1b[33m(0.5)" in text and "[[" not in text.replace("[INST]", "")


def test_json_has_the_examples_of_the_training(chats):
    out = as_json("train", "preview", str(chats), *MODEL, "-n", "1")
    assert list(out) == list(callback("train preview").fields)
    tokenizer = load_tokenizer(LAYOUTS["hf"])
    data, report = read_examples(chats, tokenizer, DataOptions(bad_rows="skip"))
    (sample,) = out["samples"]
    assert sample["ids"] == data[0].ids.tolist() and sample["weights"] == data[0].weights.tolist()
    assert sample["text"] == tokenizer.decode(sample["ids"], clean_up_tokenization_spaces=False)
    assert (out["rows"], out["examples"], out["bad_rows"]) == (4, 2, report.bad_rows)
    assert out["tokens"] == data.lengths.sum() and out["learned"] == data.total_weights.sum()
    assert sum(count for *_, count in out["lengths"]) == 2
    assert all("\n" not in message for message in out["bad_rows"])


def test_columns_and_errors(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text("question,answer\nWho?, Me\n")
    columns = ("--columns", "prompt=question", "--columns", "completion=answer")
    assert as_json("train", "preview", str(path), *MODEL, *columns)["format"] == "prompt"
    result = run("train", "preview", str(path), *MODEL)
    assert result.exit_code == 1 and 'columns = {"prompt": "question", "completion": "answer"}' in result.output
    result = run("train", "preview", str(path), *MODEL, "--columns", "question")
    assert result.exit_code == 2 and "is not NAME=COLUMN" in result.output
    path.write_text("prompt,completion\nWho?,\n")
    result = run("train", "preview", str(path), *MODEL)
    assert result.exit_code == 1 and "line 2: completion is empty" in result.stdout


@pytest.mark.parametrize(
    ("lengths", "limit", "bars"),
    [
        ([], 8, []),
        ([1], 8, [(1, 8, 1)]),
        ([8, 9], 16, [(1, 8, 1), (9, 16, 1)]),
        ([20, 30, 33], 24, [(17, 24, 1), (25, 32, 1), (33, 64, 1)]),
        ([3, 100], 1024, [(1, 8, 1), (9, 16, 0), (17, 32, 0), (33, 64, 0), (65, 128, 1)]),
    ],
)
def test_the_histogram_counts_each_row_once(lengths, limit, bars):
    assert histogram(np.array(lengths, np.int32), limit) == bars


def test_a_classification_file_is_recognised_by_its_label(tmp_path):
    path = tmp_path / "spam.csv"
    path.write_text("text,label\nWin money now,spam\nSee you at noon,ham\nHello again,ham\nNo label,\n")
    out = as_json("train", "preview", str(path), *MODEL, "-n", "2")
    assert (out["task"], out["format"], out["labels"]) == ("classify", "classification", {"spam": 1, "ham": 2})
    assert (out["rows"], out["examples"]) == (4, 3) and "line 5" in out["bad_rows"][0]
    tokenizer = load_tokenizer(LAYOUTS["hf"])
    assert [item["ids"] for item in out["samples"]] == [
        tokenizer.encode(text) for text in ("Win money now", "See you at noon")
    ]
    text = run("train", "preview", str(path), *MODEL).stdout
    assert "[[spam]]" in text and "labels: ham (2), spam (1)" in text
    assert "shown for `puna train classify`, because of the column 'label'" in text
    sft = as_json("train", "preview", str(path), *MODEL, "--task", "sft")
    assert (sft["task"], sft["format"], sft["labels"]) == ("sft", "text", {})
    assert "columns that are not used: 'label'; `puna train classify`" in " ".join(sft["notes"])


def test_prompts_with_a_column_of_labels_are_for_sft(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text("prompt,completion,label\nWho?, Me,1\n")
    assert as_json("train", "preview", str(path), *MODEL)["task"] == "sft"


def test_a_missing_file_among_several_is_an_error(tmp_path):
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats/train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    missing = tmp_path / ("long" * 40) / "mising"
    result = run("train", "preview", "-m", str(LAYOUTS["hf"]), str(tmp_path / "chats"), str(missing))
    assert result.exit_code == 1
    assert f"'{missing}': no such file or folder" in result.stderr


def test_a_file_of_settings_tells_the_data_and_the_task(chats, tmp_path):
    rows, file = tmp_path / "mail.csv", tmp_path / "run.toml"
    rows.write_text("body,kind\nBuy now,spam\nSee you at noon,ham\n")
    file.write_text(
        f'task = "classify"\nmodel = "{LAYOUTS["hf"]}"\ndata = "{rows}"\nmax_length = 7\n'
        '[documents]\ncolumns = {text = "body", label = "kind"}\n'
    )
    out = as_json("train", "preview", str(file))
    assert (out["task"], out["labels"], out["format"]) == ("classify", {"spam": 1, "ham": 1}, "classification")
    assert out["truncated"] == 1 and len(out["samples"][1]["ids"]) == 7
    assert as_json("train", "preview", str(file), "--max-length", "3")["truncated"] == 2  # overrides the file
    file.write_text(f'model = "{LAYOUTS["hf"]}"\ndata = ["{chats}"]\n')
    assert as_json("train", "preview", str(file))["task"] == "sft"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task = "pretrain"', "is for the task pretrain"),
        ('task = "classify"', "names no data"),
        ("tsak = 1", "'tsak' is not an option; did you mean 'task'?"),
    ],
)
def test_errors_of_files_of_settings_name_the_file(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    result = run("train", "preview", str(file))
    assert result.exit_code != 0 and str(file) in result.output.replace("\n", "") and message in result.output
