"""Readers return the rows that Python's own json and csv modules read, with the line of each."""

from __future__ import annotations

import csv
import json
import tracemalloc

import numpy as np
import pytest

from puna.errors import ArgumentError, DataError, ModelNotFoundError
from puna.files.data_files import choose_data_files
from puna.training.data.readers.open import open_rows
from puna.training.data.readers.rows import Row

ROWS = [
    {"prompt": "a, b\n", "completion": 'c "d"'},
    {"prompt": "é;\t", "completion": "世界"},
    {"prompt": "x", "completion": ""},
]


def read_all(data, **options) -> list[Row]:
    rows = open_rows(data, **options)
    return [rows.read(index) for index in range(len(rows))]


def values(data, **options):
    return [row.values for row in read_all(data, **options)]


def places(data, **options):
    return [str(row.source).rpartition("/")[2] for row in read_all(data, **options)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n  \n"])
def test_jsonl_has_a_row_per_line(tmp_path, end, mark, last):
    path = write(tmp_path / "a.jsonl", mark + end.join(json.dumps(row) for row in ROWS) + last)
    assert values(path) == ROWS
    assert places(path) == ["a.jsonl, line 1", "a.jsonl, line 2", "a.jsonl, line 3"]


def test_blank_lines_count_as_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '\n \n{"a": 1}\n\n\t\n{"a": 2}\n\n')
    assert places(path) == ["a.jsonl, line 3", "a.jsonl, line 6"]


def test_lines_that_span_scanned_blocks_are_complete(tmp_path, monkeypatch):
    monkeypatch.setattr("puna.training.data.readers.lines._BLOCK", 7)
    rows = [{"text": "x" * size} for size in (0, 1, 5, 6, 7, 8, 30)]
    path = write(tmp_path / "a.jsonl", "\ufeff" + "\n\n  \n".join(json.dumps(row) for row in rows))
    assert values(path) == rows
    assert places(path) == [f"a.jsonl, line {1 + 3 * index}" for index in range(len(rows))]


def test_a_large_jsonl_file_uses_8_bytes_per_row(tmp_path):
    path = write(tmp_path / "a.jsonl", (json.dumps({"text": "x" * 400}) + "\n") * 20_000)
    tracemalloc.start()
    rows = open_rows(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 20_000 and rows.read(19_999).values == {"text": "x" * 400}
    assert rows._lines.starts.nbytes == 8 * 20_000 and rows._lines.numbers is None
    assert peak < 6e6, "one block with its counts, not the file"


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", [None, "data"])
def test_json_is_a_list_of_rows(tmp_path, indent, key):
    path = write(tmp_path / "a.json", json.dumps(ROWS if key is None else {"version": [1], key: ROWS}, indent=indent))
    assert values(path) == ROWS
    if key is None and indent:
        assert places(path) == ["a.json, line 2", "a.json, line 6", "a.json, line 10"]


def test_a_json_object_is_one_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}]}
    assert values(write(tmp_path / "a.json", json.dumps(row, indent=1))) == [row]


def test_the_content_decides_between_json_and_jsonl(tmp_path):
    lines = "\n".join(json.dumps(row) for row in ROWS)
    for name in ("a.json", "a.csv", "no_ending"):
        assert values(write(tmp_path / name, lines)) == ROWS
    assert values(write(tmp_path / "b.jsonl", json.dumps(ROWS))) == ROWS


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_equals_pythons_reader(tmp_path, delimiter, end, mark):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(mark)
        writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter, lineterminator=end)
        writer.writeheader()
        writer.writerows(ROWS)
        file.write(end)
    assert values(path) == ROWS
    assert places(path) == ["a.csv, line 2", "a.csv, line 4", "a.csv, line 5"]


def test_random_csv_equals_pythons_reader(tmp_path):
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list('a",\n\r\u20ac '), draw.integers(0, 9))) for _ in range(600)]
    rows = [{"b": texts[i], "text": "x" + texts[i + 1]} for i in range(0, 600, 2)]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["b", "text"])
        writer.writeheader()
        writer.writerows(rows)
    assert values(path) == rows


def test_text_files_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("puna.training.data.readers.text_rows._PART", 50)
    text = "".join(f"line {number}\n" for number in range(100)) + "end"
    rows = read_all(write(tmp_path / "a.txt", text))
    assert "".join(row.values["text"] for row in rows) == text
    assert [row.values["begins"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert [row.values["ends"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all(text.split("\n")[row.source.row - 1] == row.values["text"].split("\n")[0] for row in rows)


def test_a_folder_holds_files_of_one_split(tmp_path):
    write(tmp_path / "data/train-00000-of-00002.jsonl", '{"a": 1}')
    write(tmp_path / "data/train-00001-of-00002.jsonl", '{"a": 2}\n{"a": 3}')
    write(tmp_path / "data/valid.jsonl", '{"a": 4}')
    write(tmp_path / "README.md", "About this data")
    write(tmp_path / ".hidden/train.jsonl", '{"a": 5}')
    assert values(tmp_path) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert values(tmp_path, split="validation") == [{"a": 4}]
    assert places(tmp_path)[1:] == ["train-00001-of-00002.jsonl, line 1", "train-00001-of-00002.jsonl, line 2"]
    with pytest.raises(DataError, match=r"no data files of the split 'test'.*names of data files end in \.jsonl"):
        open_rows(tmp_path, "test")


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["b.csv", "a.csv", "x.py"], "train", ["a.csv", "b.csv"]),
        (["a.csv"], "test", []),
        (["test.csv", "other.csv"], "train", []),
        (["default/test/0.parquet", "default/train/0.parquet"], "test", ["default/test/0.parquet"]),
        (["trainer.jsonl", "constraint.jsonl"], "train", ["constraint.jsonl", "trainer.jsonl"]),
        (["README.md", "b.txt"], "train", ["b.txt"]),
        (["dataset_info.json", "a.jsonl"], "train", ["a.jsonl"]),
        (["dev.json", "train.json"], "validation", ["dev.json"]),
    ],
)
def test_files_of_a_split_are_chosen_by_words_of_their_paths(names, split, chosen):
    assert choose_data_files(names, split) == chosen


def test_several_files_and_rows_in_memory(tmp_path):
    one, two = write(tmp_path / "a.jsonl", '{"a": 1}'), write(tmp_path / "b.csv", "a\n2\n")
    assert values([one, str(two)]) == [{"a": 1}, {"a": "2"}]
    assert values(ROWS) == ROWS
    assert values({"train": ROWS[:1], "test": ROWS[1:]}, split="test") == ROWS[1:]
    assert values(["some text"]) == [{"text": "some text", "begins": True, "ends": True}]
    assert places(ROWS)[2] == "the data, row 3"


def test_objects_of_datasets_and_pandas_are_read():
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    data = datasets.Dataset.from_list(ROWS)
    assert values(data) == ROWS
    assert values(datasets.DatasetDict(train=data)) == ROWS
    assert values(pandas.DataFrame(ROWS)) == ROWS


def test_parquet_is_read_in_blocks(tmp_path, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.setattr("puna.training.data.readers.parquet_rows._BLOCK", 7)
    path = tmp_path / "a.parquet"
    duckdb.sql(
        "COPY (SELECT range AS number, [{'role': 'user', 'content': 'q' || range}] AS messages FROM range(20)) "
        f"TO '{path}' (FORMAT parquet)"
    )
    expected = [{"number": i, "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(20)]
    assert values(path) == expected
    rows = open_rows(path)
    assert [rows.read(index).values["number"] for index in (19, 0, 8)] == [19, 0, 8]
    write(tmp_path / "b.parquet", path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"b\.parquet: not a complete Parquet file"):
        open_rows(tmp_path / "b.parquet")
    write(tmp_path / "c.parquet", path.read_bytes()[:-30] + b"x" * 26 + b"PAR1")
    with pytest.raises(DataError, match=r"c\.parquet: not a valid Parquet file"):
        open_rows(tmp_path / "c.parquet")


def test_data_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        open_rows(tmp_path / "missing.jsonl")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_rows("data/missing.jsonl")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_rows([str(tmp_path / "missing.jsonl")])
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_rows([tmp_path / "missing"])  # a str without a suffix is a text, a Path never is
    with pytest.raises(DataError, match="there are no rows"):
        open_rows([])
    with pytest.raises(ArgumentError, match="read it into a list"):
        open_rows(iter(ROWS))
    with pytest.raises(ArgumentError, match="an empty text"):
        open_rows("")
    with pytest.raises(DataError, match=r"without 'train'; its keys are 'a'"):
        open_rows({"a": ROWS})
