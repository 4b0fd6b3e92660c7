"""`puna train`: options that follow from the settings, runs from the command line, `watch`, `runs` and `resume`."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields

import pytest
import typer

from puna import LLM
from puna.cli import app
from puna.cli.train.display import Display
from puna.training.events import End, Observer, StepEvent
from puna.training.report.equivalent import command_line, flag
from puna.training.report.metrics import read_metrics
from puna.training.report.recorder import MetricsWriter
from puna.training.report.snapshot import Snapshot
from puna.training.settings import TrainingSettings, read_settings
from tests.cli.test_cli import run
from tests.golden.files import LAYOUTS, TEXT
from tests.helpers.torch_files import HAS_TORCH
from tests.training.report.runs import play, start, step

MODEL = str(LAYOUTS["hf"])
TASKS = ("sft", "classify", "pretrain")
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")


def parameters(task: str):
    """Returns the options of a command by the name of the setting."""
    return {item.name: item for item in typer.main.get_command(app).commands["train"].commands[task].params}


def config(*arguments: str, task: str = "sft") -> TrainingSettings:
    """Returns the settings of a command line, as --print-config prints them."""
    result = run("train", task, *arguments, "--print-config")
    assert result.exit_code == 0, result.output
    values = json.loads(json.dumps(_toml(result.stdout)))
    return TrainingSettings.of(values)


def _toml(text: str):
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    content = tomllib.loads(text)
    return {
        name: value
        for key, item in content.items()
        for name, value in (item.items() if isinstance(item, dict) else [(key, item)])
    }


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_is_an_option_of_a_task(task):
    own = parameters(task)
    every = {name for item in TASKS for name in parameters(item)}
    assert {item.name for item in fields(TrainingSettings)} - every == {"task", "resume"}
    for item in fields(TrainingSettings):
        if item.name in own:
            assert flag(item.name) in own[item.name].opts
            assert own[item.name].help
            assert own[item.name].default in (None, [])


@pytest.mark.parametrize(("task", "size"), [("sft", 8), ("classify", 16), ("pretrain", 12)])
def test_the_help_has_the_defaults_of_the_task(task, size):
    page = " ".join(run("train", task, "--help").output.split())
    assert f"Documents of one optimizer step. [from 1 to 1,000,000; default: {size}]" in page


def test_the_help_has_a_section_for_each_group():
    page = run("train", "sft", "--help").stdout
    sections = re.findall(r"^(\w.*):$", page, re.M)
    expected = ["Run", "Documents", "Optimizer", "Adapter", "Evaluation, samples and states", "Options"]
    assert [name for name in sections if name in expected] == expected
    assert "Classification:" not in page
    assert "[from 1 to 65,536; default: 16]" in " ".join(page.split())


@needs_torch
def test_options_override_the_file(tmp_path):
    (tmp_path / "run.toml").write_text('model = "a"\ndata = "x.jsonl"\nsteps = 5\n[adapter]\nrank = 4\nalpha = 8\n')
    settings = config(str(tmp_path / "run.toml"), "--rank", "2", "--no-packing", "-m", "b")
    assert (settings.model, settings.data, settings.steps) == ("b", "x.jsonl", 5)
    assert (settings.rank, settings.alpha, settings.packing) == (2, 8.0, False)


@needs_torch
def test_the_file_overrides_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PUNA_MODEL", "from-environment")
    (tmp_path / "run.toml").write_text('model = "from-file"\n')
    assert config(str(tmp_path / "run.toml")).model == "from-file"
    assert config().model == "from-environment"


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--learning-rate auto", "learning_rate", "auto"),
        ("--learning-rate 1e-3", "learning_rate", 1e-3),
        ("--data a --data b", "data", ("a", "b")),
        ("--data a", "data", "a"),
        ("--targets q_proj --targets v_proj", "targets", ("q_proj", "v_proj")),
        ("--targets .*mlp.*", "targets", ".*mlp.*"),
        ("--columns text=body --columns label=kind", "columns", {"text": "body", "label": "kind"}),
        ("--rank-pattern q_proj=4 --rank-pattern v_proj=2", "rank_pattern", {"q_proj": 4, "v_proj": 2}),
        ("--alpha-pattern q_proj=4.5", "alpha_pattern", {"q_proj": 4.5}),
        ("--sample-prompts 'Hi there' --sample-prompts B", "sample_prompts", ("Hi there", "B")),
        ("--sample-prompts A", "sample_prompts", ("A",)),
        ("--dora", "dora", True),
        ("--class-weights 1,2.5", "class_weights", (1.0, 2.5)),
        ("--class-weights balanced", "class_weights", "balanced"),
    ],
)
def test_values_are_converted_to_the_types_of_the_settings(arguments, name, value):
    task = "classify" if "class" in arguments else "sft"
    settings = config(*shlex.split(arguments), task=task)
    assert getattr(settings, name) == value
    words = shlex.split(command_line(settings))
    assert words[:3] == ["puna", "train", task]
    assert getattr(config(*words[3:], task=task), name) == value, "the equivalent command has the same value"


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rank 3.5", "rank is 3.5; it must be a whole number at least 1"),
        ("--rank none", "rank is 'none'"),
        ("--dropout 1", "dropout is 1; it must be a number at least 0 and below 1"),
        ("--learning-rate fast", "learning_rate is 'fast'"),
        ("--columns text", "must be NAME=VALUE, got 'text'"),
        ("--keep-best", "there is no held-out data; set eval_data or eval_share"),
        ("--ranks 3", "No such option: --ranks"),
        ("absent.toml", "absent.toml cannot be read"),
        ("", "give the training data with --data"),
    ],
)
def test_invalid_options_are_errors_of_the_command_line(arguments, message):
    result = run("train", "sft", *shlex.split(arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@needs_torch
def test_a_file_for_another_task_names_its_command(tmp_path):
    (tmp_path / "run.toml").write_text('task = "classify"\n')
    result = run("train", "sft", str(tmp_path / "run.toml"))
    assert result.exit_code == 2
    assert "puna train classify" in " ".join(result.output.split())


def test_the_group_lists_its_commands():
    page = run("train").output
    for name in ("sft", "classify", "pretrain", "resume", "watch", "runs"):
        assert re.search(rf"^  {name} ", page, re.M)
    assert run("train", "nonsense").exit_code == 2


def test_the_display_prints_each_tenth_of_the_tokenisation_once(capsys):
    with Display() as display:
        for done in (128, 256, 500, 1280):
            display.preparing(done, 1280, "rows")
    assert capsys.readouterr().err.splitlines() == [
        f"{share}% of the data tokenised (1,280 rows)" for share in (10, 20, 30)
    ]


@pytest.fixture
def spam(tmp_path, monkeypatch):
    """A folder with spam.csv, as the current directory."""
    rows = [f"buy the grass {index},spam\nthe moon is bright {index},ham" for index in range(16)]
    (tmp_path / "spam.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CLASSIFY = ("train", "classify", "-m", MODEL, "--data", "spam.csv", "--threads", "1", "--dtype", "float32")


@needs_torch
def test_a_small_model_is_trained_from_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUNA_MODEL", MODEL)  # the default model of the other commands
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 40)
    assert run("tokenizer", "train", "text.txt", "--kind", "char", "-o", "tok").exit_code == 0
    arguments = ("--tokenizer", "tok", "--data", "text.txt", "--max-length", "16", "--steps", "2", "--threads", "1")
    small = ("--depth", "1", "--width", "16", "--heads", "2")
    result = run("train", "pretrain", *arguments, *small, "-o", "new")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "new" / "config.json").read_text())["hidden_size"] == 16
    assert not read_settings(tmp_path / "new" / "training.toml").get("model")
    assert run("generate", "the", "-m", "new", "--max-tokens", "3").exit_code == 0


@needs_torch
def test_a_classifier_is_trained_and_used_from_the_command_line(spam):
    result = run(*CLASSIFY, "--steps", "6", "--eval-share", "0.25", "--eval-steps", "3", "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    metrics = read_metrics(spam / "out")
    assert out["losses"] == metrics.losses == [item["loss"] for item in metrics.steps]
    assert (out["path"], out["status"], out["steps"]) == ("out", "finished", 6)
    assert [item["step"] for item in metrics.evaluations] == [3, 6]
    assert out["metrics"]["accuracy"] == metrics.evaluations[-1]["metrics"]["accuracy"]
    assert "step 6/6" in result.stderr
    assert "held-out data after step 6" in result.stderr
    assert (spam / "out" / "report.html").stat().st_size > 5_000
    labels = run("classify", "-m", MODEL, "--adapter", "out", "buy the grass", "--json")
    assert labels.exit_code == 0, labels.output
    assert "spam" in labels.stdout


@needs_torch
def test_the_saved_settings_repeat_the_run_and_quiet_prints_the_path(spam):
    first = run(*CLASSIFY, "--steps", "2", "-o", "first")
    assert first.exit_code == 0, first.output
    assert first.stdout == "first\n"
    assert "puna serve" in first.stderr
    assert "estimate" in first.stderr
    again = run("train", "classify", "first/training.toml", "-o", "second", "--quiet")
    assert (again.stdout, again.stderr) == ("second\n", "")
    assert read_metrics(spam / "second").losses == read_metrics(spam / "first").losses
    assert read_settings(spam / "second/training.toml") == read_settings(spam / "first/training.toml")
    used = run(*CLASSIFY, "--steps", "2", "-o", "first")
    assert used.exit_code == 1
    assert "first" in used.stderr
    listed = json.loads(run("train", "runs", ".", "--json").stdout)["runs"]
    assert {item["path"] for item in listed} == {"first", "second"}
    assert all(item["settings"]["steps"] == 2 and item["status"] == "finished" for item in listed)


class _Interrupt(Observer):
    """Sends Ctrl-C during a step."""

    def __init__(self, at: int) -> None:
        self._at = at

    def stepped(self, event: StepEvent) -> None:
        if event.step == self._at:
            signal.raise_signal(signal.SIGINT)


@needs_torch
def test_an_interrupted_run_is_resumed_with_the_same_result(spam, monkeypatch):
    import puna.training.api as api

    assert run(*CLASSIFY, "--steps", "5", "-o", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        original = api.report_observers
        patch.setattr(api, "report_observers", lambda *args: [*original(*args), _Interrupt(3)])
        result = run(*CLASSIFY, "--steps", "5", "-o", "parts")
    assert result.exit_code == 130
    assert "interrupted after step 3" in result.stderr
    assert result.stderr.count("\nStopping after this step; press Ctrl-C again to stop at once.\n") == 1
    assert "puna train resume parts" in result.stderr
    assert read_metrics(spam / "parts").status == "interrupted"
    assert read_metrics(spam / "whole").losses[:3] == read_metrics(spam / "parts").losses
    resumed = run("train", "resume", "parts", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["losses"] == read_metrics(spam / "whole").losses
    assert read_metrics(spam / "parts").losses == read_metrics(spam / "whole").losses
    weights = [(spam / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_a_folder_without_a_run_cannot_be_resumed_or_watched(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    for command in ("resume", "watch"):
        for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
            result = run("train", command, str(path))
            assert result.exit_code == 1
            assert "puna train runs" in result.stderr


@needs_torch
def test_an_sft_adapter_is_used_by_generate(spam):
    (spam / "poem.txt").write_text(TEXT.read_text()[:2000])
    result = run("train", "sft", "-m", MODEL, "--data", "poem.txt", "--steps", "2", "--threads", "1", "-o", "out",
                 "--sample-prompts", "the llama", "--sample-tokens", "4", "--max-length", "64")  # fmt: skip
    assert result.exit_code == 0, result.output
    samples = read_metrics(spam / "out").samples
    assert [item["step"] for item in samples] == [0, 2]
    line = next(line.strip() for line in result.stderr.splitlines() if line.strip().startswith("puna generate"))
    assert run(*shlex.split(line)[1:], "-n", "3").exit_code == 0
    with LLM(MODEL, adapters={"out": "out"}) as llm:
        assert llm.generate("the llama", adapter="out", max_tokens=2).text


def test_watch_shows_a_run_of_another_process(tmp_path):
    play([MetricsWriter(tmp_path)], tmp_path)
    out = json.loads(run("train", "watch", str(tmp_path), "--once", "--json").stdout)
    assert (out["status"], out["step"], out["steps"]) == ("finished", 40, 40)
    documented = typer.main.get_command(app).commands["train"].commands["watch"].callback.fields
    assert sorted(out) == sorted(name for names in documented for name in names.split(", "))
    page = run("train", "watch", str(tmp_path), "--once").stdout
    for text in ("finished", "step 40 of 40", "▁", "best", "after <one>", "accuracy 0.7500"):
        assert text in page, page
    lines = run("train", "watch", str(tmp_path)).stdout
    assert "step 40/40" in lines


def test_watch_ends_with_the_run(tmp_path):
    """The writer is another process, which ends while it is watched."""
    script = (
        "import sys, time; from pathlib import Path; from tests.training.report.runs import *\n"
        "from puna.training.report.recorder import MetricsWriter\n"
        "folder = Path(sys.argv[1]); writer = MetricsWriter(folder); writer.started(start(folder))\n"
        "writer.stepped(step(1)); print('started', flush=True); sys.stdin.readline()\n"
        "writer.stepped(step(2)); writer.ended(End(2, 'stopped'))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "started\n"
        assert json.loads(run("train", "watch", str(tmp_path), "--once", "--json").stdout)["status"] == "running"
        process.stdin.write("\n")
        process.stdin.flush()
        lines = run("train", "watch", str(tmp_path), "--interval", "0.1", "--json").stdout.splitlines()
    assert (json.loads(lines[-1])["step"], json.loads(lines[-1])["status"]) == (2, "stopped")


def test_the_list_of_runs_has_a_row_for_each(tmp_path):
    for name in ("a", "b/c"):
        play([MetricsWriter(tmp_path / name)], tmp_path / name, rank=4)
    page = run("train", "runs", str(tmp_path)).stdout
    assert page.count("finished") == 2
    assert "█" in page
    assert run("train", "runs", str(tmp_path / "absent")).exit_code == 1
    (tmp_path / "empty").mkdir()
    assert "There are no runs" in run("train", "runs", str(tmp_path / "empty")).stderr


def test_a_snapshot_has_the_time_that_is_left(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.started(start(tmp_path, steps=10))
    metrics = read_metrics(tmp_path)
    for number in range(1, 5):
        metrics.add({"kind": "step", "elapsed": 3.0 + 2 * number, **vars(step(number))})
    state = Snapshot.of(metrics)
    assert state.left == pytest.approx(2.0 * 6)
    assert state.tokens_per_second == pytest.approx(800)
    assert state.tokens == 1600
    writer.ended(End(4, "stopped"))
