"""Columns and labels of classifications: all forms, and errors that name file, line and remedy."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest

from puna.errors import ConfigError, DataError
from puna.tokenizer import load_tokenizer
from puna.training.data.label_columns import _IDENTIFIER
from puna.training.data.read import DataOptions
from puna.training.settings import TrainingSettings
from puna.training.tasks.labelled import read_labelled
from puna.training.tasks.labelled_preview import detect_task
from tests.golden.files import LAYOUTS


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(LAYOUTS["hf"])


def read(data, tokenizer, **settings):
    return read_labelled(data, TrainingSettings.of(settings), tokenizer)


def labels_of(examples):
    return [examples[index].label for index in range(len(examples))]


def rows(*labels, column="label"):
    return [{"text": f"the llama {index}", column: label} for index, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (["spam", "ham", "spam"], ("ham", "spam"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        (["10", "9", " 10 "], ("9", "10"), [1, 0, 1]),
        ([True, False], ("false", "true"), [1, 0]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([np.int64(3), np.int64(1)], ("1", "3"), [1, 0]),
        (["-1", "1"], ("-1", "1"), [0, 1]),
    ],
)
def test_one_label_per_text(tokenizer, values, names, expected):
    examples = read(rows(*values), tokenizer)
    assert examples.labels.problem == "single_label_classification" and examples.labels.names == names
    assert labels_of(examples) == expected
    assert examples[0].ids.tolist() == tokenizer.encode("the llama 0") and not examples[0].weights.any()


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ([["a", "c"], [], ["b"]], {}),
        (['["a", "c"]', "[]", '["b"]'], {}),
        (["a|c", "", "b"], {"problem": "multi"}),
        (["a, c", "", "b"], {"problem": "multi"}),
        ([[0, 2], [], [1]], {"labels": ["a", "b", "c"]}),
    ],
)
def test_several_labels_per_text(tokenizer, values, settings):
    examples = read(rows(*values), tokenizer, **settings)
    assert examples.labels.problem == "multi_label_classification" and examples.labels.names == ("a", "b", "c")
    assert labels_of(examples) == [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)]


def test_a_column_per_class(tokenizer, tmp_path):
    file = tmp_path / "toxic.csv"
    file.write_text("id,comment,rude,threat\n1,the llama,1,0\n2,grass,0,0\n")
    examples = read(file, tokenizer, labels=["threat", "rude"], problem="multi")
    assert labels_of(examples) == [(0.0, 1.0), (0.0, 0.0)]
    file.write_text("id,comment,rude,threat\n1,the llama,yes,0\n")
    with pytest.raises(DataError, match=r"toxic\.csv, line 2: 'rude' is 'yes'; the column of a class must be 0 or 1"):
        read(file, tokenizer, labels=["threat", "rude"], problem="multi")


def test_regression(tokenizer):
    examples = read(rows("2.5", "-1", "3", column="rating"), tokenizer)
    assert examples.labels.problem == "regression" and examples.labels.names == ("rating",)
    assert labels_of(examples) == [2.5, -1.0, 3.0]
    examples = read(rows(1, 2, 3), tokenizer, problem="regression")
    assert labels_of(examples) == [1.0, 2.0, 3.0]
    examples = read(rows([1.5, 2], [3, 4]), tokenizer, problem="regression", labels=["x", "y"])
    assert labels_of(examples) == [(1.5, 2.0), (3.0, 4.0)]


def test_the_setting_names_classes_that_are_numbers_in_the_data(tokenizer):
    examples = read(rows(0, 1, 0), tokenizer, labels=["negative", "positive"])
    assert examples.labels.names == ("negative", "positive") and labels_of(examples) == [0, 1, 0]


@pytest.mark.parametrize(
    ("header", "settings"),
    [
        ("text,label", {}),
        ("Sentence , Sentiment", {}),
        ("text,answer", {}),
        ("v2,label", {}),
        ("v2,v1", {"columns": {"text": "v2", "label": "v1"}}),
    ],
)
def test_columns_are_recognised_or_named(tokenizer, tmp_path, header, settings):
    file = tmp_path / "data.csv"
    file.write_text(f'{header}\n"the llama, and",a\ngrass,b\n')
    examples = read(file, tokenizer, **settings)
    assert labels_of(examples) == [0, 1] and examples[0].ids.tolist() == tokenizer.encode("the llama, and")
    assert str(examples[1].source) == f"{file}, line 3"


@pytest.mark.parametrize(
    ("header", "settings"),
    [
        ("message,kind", {}),
        ("id,message,kind", {}),
        ("id,v1,v2", {}),
        ("sms,v2", {}),
        ("n,v1,label", {}),
        ("n,body,v2", {}),
        ("n,x,v2", {"columns": {"label": "v2"}}),
    ],
)
def test_columns_are_told_by_their_values_if_not_by_their_names(tokenizer, tmp_path, header, settings):
    file, names = tmp_path / "data.csv", header.split(",")
    numbers = ["{n}"] * (len(names) - 2)
    line = ",".join([*numbers, '"the llama {n} lives, and",{label}'])
    lines = [line.format(n=n, label="ham" if n % 3 else "spam") for n in range(30)]
    file.write_text("\n".join([header, *lines]))
    examples = read(file, tokenizer, **settings)
    assert examples.labels.names == ("ham", "spam") and labels_of(examples)[:4] == [1, 0, 0, 1]
    assert examples[2].ids.tolist() == tokenizer.encode("the llama 2 lives, and")


@pytest.mark.parametrize(
    "values",
    [
        ["the llama {n} lives,the other llama {n},a", "the llama {n} lives,the other llama {n},b"],  # two texts
        ["the llama {n} lives,a,c", "the llama {n} lives,b,d"],  # two labels
        ["the llama {n} lives,{n},{n}"],  # no label
        ["llama,a,{n}", "llama,b,{n}"],  # no text
    ],
)
def test_columns_that_values_do_not_tell_are_an_error(tokenizer, tmp_path, values):
    file = tmp_path / "data.csv"
    lines = [values[n % len(values)].format(n=n) for n in range(30)]
    file.write_text("\n".join(["x,y y,z", *lines]))
    with pytest.raises(DataError, match=r"line 2: the columns are 'x', 'y y', 'z'; which ha.*Name (it|them)") as caught:
        read(file, tokenizer)
    assert "on the command line --columns" in str(caught.value)


LINES = {
    "many labels": ("utterance,intent_name,split", 300, lambda n: f"intent {n * 37 % 77},{'dev' if n % 5 else 'test'}"),
    "many sorted labels": ("utterance,intent_name,split", 1000, lambda n: f"i{n // 5},{'dev' if n % 7 else 'test'}"),
    "sorted labels": ("utterance,verdict,lang", 600, lambda n: f"{'y' if n < 300 else 'n'},{'en' if n % 3 else 'de'}"),
    "a constant column": ("utterance,verdict,lang", 50, lambda n: f"good,{'en' if n % 3 else 'de'}"),
    "measured values": ("utterance,mark,lang", 50, lambda n: f"{n / 64},{'en' if n % 3 else 'de'}"),
    "empty values": ("utterance,verdict,lang", 50, lambda n: f"{'' if n % 9 else n},{'en' if n % 3 else 'de'}"),
}  # fmt: skip
"""Name, header, number of rows, and the values of a row after its text."""


@pytest.mark.parametrize("name", LINES)
def test_another_column_that_could_have_the_labels_is_an_error(tokenizer, tmp_path, name):
    header, count, line = LINES[name]
    _, label, other = header.split(",")
    file = tmp_path / "data.csv"
    file.write_text("\n".join([header, *(f"the llama {n} lives there,{line(n)}" for n in range(count))]))
    assert detect_task(file, DataOptions()) == ("sft", "")
    message = f"'utterance', '{label}', '{other}'; which has the label.*, on the command line --columns label={label}"
    with pytest.raises(DataError, match=message):
        read(file, tokenizer)
    assert len(read(file, tokenizer, columns={"label": other})) == count


@pytest.mark.parametrize(
    ("header", "row", "example"),
    [
        ("id,body,kind", "{n},the llama {n} lives,k{n}", "--columns label=kind"),
        ("Unnamed: 0,a,b", "{n},x,a long text {n}", "--columns label=a"),
        ("user_id,utterance,lang,verdict", "7,the llama {n} lives,en,{v}", "--columns label=lang"),
        ("text,review_id,stars", "the llama {n} lives,{n},{n}", 'for example columns = {label = "stars"}'),
        ("text,id,no", "a,{n},{n}", 'for example columns = {label = "id"}'),
        ("label,n,m", "a,1,a long text", 'for example columns = {text = "m"}'),
    ],
)
@pytest.mark.parametrize("count", [1, 30])
def test_an_example_of_columns_names_no_identifiers(tokenizer, tmp_path, header, row, example, count):
    file = tmp_path / "a.csv"
    file.write_text("\n".join([header, *(row.format(n=n, v="yn"[n % 2]) for n in range(count))]) + "\n")
    with pytest.raises(DataError, match=re.escape(example)):
        read(file, tokenizer)


def test_a_column_that_some_rows_lack_could_have_the_labels(tokenizer):
    data = [
        {"x": f"the llama {n} lives", "lang": "de" if n % 3 else "en"} | ({"y": "a"} if n else {}) for n in range(30)
    ]
    with pytest.raises(DataError, match="which has the label"):
        read([*data[1:], data[0]], tokenizer)


def test_sorted_labels_are_told_by_values(tokenizer, tmp_path):
    file = tmp_path / "data.csv"
    lines = [f"{n + 7},the llama {n} lives,{'ham' if n < 500 else 'spam'}" for n in range(600)]
    file.write_text("\n".join(["id,message,kind", *lines]))
    assert detect_task(file, DataOptions()) == ("classify", "kind")
    assert read(file, tokenizer).labels.names == ("ham", "spam")


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("v1,v 2\na,b\n", {}, r"line 2: the columns are 'v1', 'v 2'; which have the text and the label\? Name them, "
         r'for example columns = {text = "v1", label = "v 2"}, on the command line --columns text=v1 --columns '
         "'label=v 2'"),
        ("text,x,y\na,b,c\n", {}, r"line 2: the columns are .*; which has the label\? Name it, for example columns = "),
        ("text,label\na,b\n", {"columns": {"text": "txt"}}, "there is no column 'txt'.*; correct the se.* 'text'"),
        ("text,label\na,b\n", {"columns": {"body": "text"}}, "names 'body'; a classification has the columns text and"),
        ("text,label\na,x\nb,\nc,y\n", {}, "line 3: the label is ''; it must be a name or a whole number. Add it"),
        ("text,label\na,x\nb,x\n", {}, "csv: all rows have the label 'x' in the column 'label'; a .* two"),
        ("text,label\na,x\nb,z\n", {"labels": ["x", "yes"]}, "line 3: the label is 'z'; the labels are 'x', 'yes'"),
        ("text,label\na,1.5\nb,z\n", {"problem": "regression"}, "line 3: the label is 'z'; .* must be a finite number"),
        ("text,label\na,1.5\nb,nan\n", {"problem": "regression"}, "line 3: the label is 'nan'"),
        ("text,label\na,1.5\nb,nan\nc,2.5\n", {}, "line 3: the label is 'nan'; .* must be a finite number"),
        ("text,label\na,1.5\nb,\nc,2.5\n", {}, "line 3: the label is ''; .* Correct or delete the row, or set bad_"),
        ("text,label\na,nan\nb,\n", {"problem": "regression", "bad_rows": "skip"}, "no row has a finite num.* 'label'"),
        ("text,label\na,nan\nb,nan\n", {}, "all rows have the label 'nan'"),
        ("text,label\na,1\nb,0\nc,nan\nd,1\n", {}, "line 4: the label is 'nan', but the others are numbers; corr"),
        ("text,label\n" + "".join(f"t,l{n}\n" for n in range(20)), {}, "all 20 rows have different values in 'label'"),
        ("text,label\na,x\n,y\n", {"max_length": 2, "truncate": "error", "labels": ["x", "y"]}, None),
        ("text,label\nthe llama lives,x\nb,y\n", {"max_length": 2, "truncate": "error"}, "line 2: the text has"),
    ],
)  # fmt: skip
def test_errors_name_the_line_and_the_remedy(tokenizer, tmp_path, content, settings, message):
    file = tmp_path / "data.csv"
    file.write_text(content)
    if message is None:
        assert len(read(file, tokenizer, **settings)) == 2
        return
    with pytest.raises(DataError, match=message):
        read(file, tokenizer, **settings)


def test_rows_that_are_not_usable_are_skipped_on_request(tokenizer, tmp_path):
    file = tmp_path / "data.jsonl"
    lines = [*rows("a", None, "b"), {"text": 5, "label": "a"}, {"label": "a"}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n{\n")
    with pytest.warns(UserWarning, match=r"row skipped: .*data\.jsonl, line") as caught:
        examples = read(file, tokenizer, bad_rows="skip")
    assert labels_of(examples) == [0, 1] and len(caught) == 4


def test_held_out_rows_have_the_labels_of_the_training_data(tokenizer):
    labels = read(rows("b", "a", "c"), tokenizer).labels
    settings = TrainingSettings.of({})
    assert labels_of(read_labelled(rows("c", "c"), settings, tokenizer, labels)) == [2, 2]
    with pytest.raises(DataError, match="row 2: the label is 'd'; the labels are 'a', 'b', 'c'"):
        read_labelled(rows("a", "d"), settings, tokenizer, labels)


def test_missing_values_among_numbers_are_no_class(tokenizer):
    with pytest.warns(UserWarning, match="row skipped: .* the label is 'nan'") as caught:
        examples = read(rows("1", "0", "nan", "1"), tokenizer, bad_rows="skip")
    assert len(caught) == 1 and examples.labels.names == ("0", "1") and labels_of(examples) == [1, 0, 1]
    assert read(rows("yes", "nan", "no"), tokenizer).labels.names == ("nan", "no", "yes")
    assert read(rows("1", "nan"), tokenizer, labels=["1", "nan"]).labels.names == ("1", "nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([float("nan"), 1.5, 2.5], [1.5, 2.5]),
        (["nan", "1.5", "2.5"], [1.5, 2.5]),
        (["1.5", "", "2.5", " ", "1.5"], [1.5, 2.5, 1.5]),
        ([1.5, None, 2.5], [1.5, 2.5]),
        ([None, 1.5, 2], [1.5, 2.0]),
    ],
)
def test_missing_values_of_a_regression_are_skipped_on_request(tokenizer, values, expected):
    with pytest.warns(UserWarning, match="row skipped: .* must be a finite number") as caught:
        examples = read(rows(*values), tokenizer, bad_rows="skip")
    assert len(caught) == len(values) - len(expected)
    assert examples.labels.problem == "regression" and labels_of(examples) == expected


def test_values_that_are_not_finite_are_classes_if_there_are_no_numbers(tokenizer):
    assert read(rows("nan", "inf"), tokenizer).labels.names == ("inf", "nan")


def test_long_texts_are_truncated_with_a_warning(tokenizer):
    data = [{"text": "the llama lives in the grass", "label": "a"}, {"text": "grass", "label": "b"}]
    ids = tokenizer.encode(data[0]["text"])
    for side, expected in (("end", ids[:3]), ("start", ids[-3:])):
        with pytest.warns(UserWarning, match=f"1 of 2 texts are longer than max_length = 3 tokens; their {side}"):
            assert read(data, tokenizer, max_length=3, truncate=side)[0].ids.tolist() == expected


def test_the_digest_depends_on_tokens_and_labels(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digests = {
            read(data, tokenizer).digest()
            for data in (rows("a", "b"), rows("b", "a"), rows("a", "c"), rows("a", "b")[::-1])
        }
    assert len(digests) == 4 and read(rows("a", "b"), tokenizer).digest() in digests


def test_settings_that_contradict_the_data(tokenizer):
    with pytest.raises(ConfigError, match="each name may occur once"):
        read(rows("a", "b"), tokenizer, labels=["a", "a"])
    with pytest.raises(ConfigError, match="needs at least two"):
        read(rows("a", "a"), tokenizer, labels=["a"])
    with pytest.raises(ConfigError, match=r"labels has 1 name, but .* has 2 numbers"):
        read(rows([1.5, 2]), tokenizer, problem="regression", labels=["x"])


@pytest.mark.parametrize(
    ("names", "are_identifiers"),
    [
        (("id", "user_id", "userId", "userID", "messageId", "uid", "guid", "UUID", "row_no", "no", "key", "No."), True),
        (("yes/no", "yes_no", "answer_key", "valid", "paid", "fluid", "PAID", "label", "casino"), False),
    ],
)
def test_names_of_identifiers(names, are_identifiers):
    assert [bool(_IDENTIFIER.fullmatch(name)) for name in names] == [are_identifiers] * len(names)
