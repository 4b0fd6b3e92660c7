"""The settings of training: checks, the TOML file, and the signature of `puna.train`."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields

import pytest

from puna.errors import ArgumentError, ConfigError
from puna.training.settings import GROUPS, TrainingSettings, check_held_out, read_settings, settings_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERY_KIND = {
    "model": 'C:\\models\\"quoted"\n\t\x7fé😀',
    "data": ["a.jsonl", "b.csv"],
    "steps": 7,
    "epochs": 1,
    "seed": 2**63 - 1,
    "learning_rate": 1e-05,
    "epsilon": 1e-12,
    "columns": {"text": "Körper", "a b": "c"},
    "rank_pattern": {"q_proj": 4},
    "targets": ("q_proj", "v_proj"),
    "sample_prompts": ["Hello"],
    "class_weights": [1, 2.5],
    "packing": False,
    "init_text": "",
}


def test_the_toml_file_holds_all_settings_exactly(tmp_path):
    settings = TrainingSettings.of(EVERY_KIND)
    path = tmp_path / "training.toml"
    path.write_text(settings_text(settings))
    assert TrainingSettings.of(read_settings(path)) == settings
    with path.open("rb") as file:  # an independent reading of the file
        content = tomllib.load(file)
    assert content["model"] == EVERY_KIND["model"] and content["optimizer"]["learning_rate"] == 1e-05
    assert content["documents"]["columns"] == EVERY_KIND["columns"]
    assert content["classification"]["class_weights"] == [1.0, 2.5]


def test_the_toml_file_of_defaults_gives_the_defaults(tmp_path):
    path = tmp_path / "training.toml"
    path.write_text(settings_text(TrainingSettings()))
    assert TrainingSettings.of(read_settings(path)) == TrainingSettings()


def test_options_without_their_section_are_read(tmp_path):
    path = tmp_path / "training.toml"
    path.write_text('rank = 4\n[run]\nmodel = "m"\n')
    assert read_settings(path) == {"rank": 4, "model": "m"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nrank = x\n", "not valid TOML .*line 2.*correct this line"),
        ("rnk = 4", "'rnk' is not an option; did you mean 'rank'"),
        ("[adapter]\nbeta1 = 0.5", r"beta1 belongs in the section \[optimizer\]"),
        ("rank = 4\n[adapter]\nrank = 5", "rank is set twice"),
        ("[lora]\nrank = 5", "'lora' is not an option"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("rank = 'x'", r"toml: rank is 'x'; it must be a whole number at least 1"),
        ("[optimizer]\nbeta1 = 2", r"toml: \[optimizer\] beta1 is 2; it must be a number at least 0 and below 1"),
    ],
)
def test_errors_of_the_toml_file_name_the_file_and_the_remedy(tmp_path, text, message):
    path = tmp_path / "training.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_settings(path)
    assert str(path) in str(error.value)


def test_a_toml_file_that_is_missing_or_not_text_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"seed = 3\n\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml, line 2: byte 10 of the file \(0xff\) is not UTF-8; convert"):
        read_settings(tmp_path / "binary.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="at most 1048576"):
        read_settings(tmp_path / "large.toml")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rank", 0, "a whole number at least 1"),
        ("rank", 1.5, "a whole number at least 1"),
        ("rank", True, "a whole number"),
        ("rank", "8", "a whole number"),
        ("beta1", 1, "at least 0 and below 1"),
        ("beta2", float("nan"), "a number"),
        ("learning_rate", 0, "above 0"),
        ("learning_rate", "fast", 'a number or "auto"'),
        ("epsilon", float("inf"), "a number"),
        ("dtype", "float16", '"bfloat16" or "float32"'),
        ("packing", 1, "true or false"),
        ("steps", -1, "at least 1"),
        ("columns", ["a"], "a table, each value a text"),
        ("rank_pattern", {"q": 0}, "at least 1"),
        ("sample_prompts", "one text", "a list, each item a text"),
        ("class_weights", [1, -1], "above 0"),
        ("data", 3, "a list, each item a text or a text"),
        ("seed", 2**63, "below"),
        ("model", None, "a text"),
    ],
)
def test_an_invalid_value_is_an_error_with_the_value_and_the_limit(name, value, words):
    with pytest.raises(ConfigError, match=f"^{name} is .*; it must be ") as error:
        TrainingSettings.of({name: value})
    assert words in str(error.value)


def test_an_unknown_option_is_an_error_with_the_nearest_name():
    with pytest.raises(ArgumentError, match=r"'lerning_rate' is not an option.*did you mean 'learning_rate'"):
        TrainingSettings.of({"lerning_rate": 1})
    with pytest.raises(ArgumentError, match="did you mean 'rank'"):
        TrainingSettings().changed(rnk=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_data": "a", "eval_share": 0.5}, "both set"),
        ({"eval_steps": 5}, "no held-out data"),
        ({"keep_best": True}, "no held-out data"),
        ({"patience": 2, "eval_share": 0.1}, "eval_steps is 0"),
        ({"resume": True, "overwrite": True}, "both set"),
    ],
)
def test_options_that_contradict_each_other_are_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        check_held_out(TrainingSettings.of(values), "eval_data" in values)


def test_every_option_belongs_to_one_group_and_has_a_description_and_a_default():
    names = [item.name for group in GROUPS.values() for item in fields(group)]
    assert sorted(names) == sorted(item.name for item in fields(TrainingSettings))
    for item in fields(TrainingSettings):
        assert item.metadata["text"] and not item.metadata["text"].endswith("."), item.name
    assert not set(GROUPS) & {item.name for item in fields(GROUPS["run"])}  # TOML allows no key and table of one name


def test_the_signature_of_train_shows_every_option():
    from puna import train

    parameters = inspect.signature(train).parameters
    assert {item.name for item in fields(TrainingSettings)} <= set(parameters)
    assert parameters["rank"].default == 16 and list(parameters)[:3] == ["model", "data", "task"]
    assert "warmup: steps of linear warm-up" in inspect.getdoc(train) and "{options}" not in inspect.getdoc(train)
