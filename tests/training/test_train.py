"""`puna.train` from the data to the use of the result, with the tasks and methods of the product."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import puna
from puna.errors import ArgumentError, ConfigError, DataError, ModelNotFoundError
from puna.training.api import run_training
from puna.training.events import Observer
from puna.training.settings import task_defaults
from tests.golden.files import LAYOUTS

MODEL = LAYOUTS["hf"]
ROWS = [{"prompt": f"Count to {last}:", "completion": " " + " ".join(map(str, range(last)))} for last in range(1, 9)]
LABELLED = [{"text": text, "label": text} for text in ("yes", "no")]
FAST = {"dtype": "float32", "batch_size": 4, "learning_rate": 1e-2, "threads": 1}


def test_three_lines_of_python_train_an_adapter(tmp_path):
    result = puna.train(MODEL, ROWS, output=tmp_path / "out", steps=6, **FAST)
    assert len(result.losses) == 6 and result.losses[-1] < result.losses[0]
    assert result.path == tmp_path / "out" and (result.path / "adapter_model.safetensors").exists()
    llm = puna.LLM(MODEL, adapters={"counting": result.path})
    base, tuned = (llm.generate("Count to 4:", adapter=name, max_tokens=4).text for name in (None, "counting"))
    assert base != tuned
    record = json.loads((result.path / "run.json").read_text())
    assert record["status"] == "finished" and record["step"] == 6 and record["data"]["examples"] == 8
    assert record["environment"]["torch"] == torch.__version__


def test_observers_receive_the_progress_of_the_tokenisation(tmp_path):
    class Recorder(Observer):
        def __init__(self):
            self.calls = []

        def preparing(self, done, total, unit):
            self.calls.append((done, total, unit))

    def calls_for(task, data):
        recorder = Recorder()
        with pytest.raises(ConfigError, match="rank_pattern"):  # after the data are read
            puna.train(
                MODEL, data, task, output=tmp_path / task, rank_pattern={"none": 2}, method="lora", callbacks=[recorder]
            )
        return recorder.calls

    assert calls_for("sft", ROWS * 20) == [(128, 160, "rows"), (160, 160, "rows")]
    labelled = [{"text": "a b", "label": index % 2} for index in range(130)]
    assert calls_for("classify", labelled) == [(128, 130, "rows"), (130, 130, "rows")]
    (tmp_path / "text.txt").write_text("One two three. " * 100)
    assert calls_for("pretrain", tmp_path / "text.txt") == [(1500, 1500, "bytes")]


@pytest.mark.parametrize("method", ["full", "ia3", "prompt", "prefix", "ptuning", "bottleneck"])
def test_every_method_trains_and_is_resumed_to_the_same_bits(method, tmp_path):
    options = {**FAST, "method": method, "steps": 4, "save_steps": 2}
    whole = puna.train(MODEL, ROWS, output=tmp_path / "whole", **options)
    with pytest.raises(KeyError):
        puna.train(MODEL, ROWS, output=tmp_path / "part", callbacks=[fail_after_step_3], **options)
    part = puna.train(MODEL, ROWS, output=tmp_path / "part", resume=True, **options)
    assert part.losses == whole.losses and len(part.losses) == 4
    files = [path.name for path in whole.path.glob("*.safetensors")]
    assert files
    assert all((part.path / name).read_bytes() == (whole.path / name).read_bytes() for name in files)


def test_one_step_of_lora_is_a_run(tmp_path):
    """Its matrices `a` do not move in the first step, because `b` is zero."""
    assert len(puna.train(MODEL, ROWS, output=tmp_path / "out", steps=1, **FAST).losses) == 1


def fail_after_step_3(event):
    if event["step"] == 3:
        raise KeyError("a callback with an error")


def test_neftune_changes_the_training_but_not_the_evaluation(tmp_path):
    """With a small learning rate, the model and hence the loss of held-out data hardly change."""
    options = {**FAST, "method": "ia3", "learning_rate": 1e-5, "steps": 1, "eval_data": ROWS, "eval_steps": 1}
    results = [
        puna.train(MODEL, ROWS, output=tmp_path / str(alpha), neftune_alpha=alpha, **options) for alpha in (0, 5)
    ]
    assert results[0].losses != pytest.approx(results[1].losses, rel=1e-3)
    assert results[0].metrics["loss"] == pytest.approx(results[1].metrics["loss"], rel=1e-4)


def test_the_default_learning_rate_is_that_of_the_formula(tmp_path):
    options = {**FAST, "learning_rate": "auto", "steps": 2}
    result = puna.train(MODEL, ROWS, output=tmp_path / "out", **options)
    rate = 5e-4 * (2000 / 64) ** 0.781  # tinker_cookbook/hyperparam_utils.py, for LoRA on LLaMA models
    assert json.loads((result.path / "run.json").read_text())["learning_rate"] == pytest.approx(rate, rel=1e-12)
    assert any(f"{rate:.3g}" in note and "5e-4 * (2000 / hidden size) ** 0.781" in note for note in result.notes)


def test_a_classifier_is_trained_saved_and_used(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"the cat {i} sat,cat\na dog {i} ran,dog\n" for i in range(8)))
    result = puna.train(MODEL, rows, "classify", output=tmp_path / "out", steps=12, eval_share=0.25, **FAST)
    assert result.metrics["accuracy"] == 1.0
    llm = puna.LLM(MODEL, adapters={"animals": result.path})
    answers = llm.classify(["the cat 9 sat", "a dog 9 ran"], adapter="animals")
    assert [answer.label for answer in answers] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (ROWS, {"method": "lorra"}, ConfigError, "method is 'lorra'.*did you mean 'lora'"),
        (ROWS, {"task": "sfft"}, ConfigError, "task is 'sfft'; it must be one of sft.*did you mean 'sft'"),
        (ROWS, {"optimizer": "sgd"}, ConfigError, "optimizer is 'sgd'; it must be one of adamw"),
        (ROWS, {"rnk": 4}, ArgumentError, "did you mean 'rank'"),
        ([{"prompt": "only"}], {}, DataError, "row 1"),
        (None, {}, ConfigError, "no training data"),
        (ROWS, {"rank": 10**9}, ConfigError, "rank is 1000000000; it must be .* at most 65,536"),
        (ROWS, {"batch_size": 10**30}, ConfigError, "batch_size is 10+; it must be .* at most 1,000,000"),
        (ROWS, {"epochs": 1e308}, ConfigError, "epochs is 1e\\+308; it must be .* at most 1,000,000,000"),
        (ROWS, {"callbacks": [3]}, ArgumentError, "a callback is 3; it must be an Observer or a function"),
        (LABELLED, {"task": "classify", "sample_prompts": ["a"]}, ConfigError, "a classifier writes no text"),
    ],
)
def test_errors_name_the_remedy(tmp_path, data, options, error, message):
    with pytest.raises(error, match=message):
        puna.train(MODEL, data, output=tmp_path / "out", **options)


LONG = [*ROWS, {"prompt": "moon", "completion": " moon" * 300}]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        *(
            (ROWS, {"method": method, "virtual_tokens": 60_000}, r"60,000 virtual .*row 8\) has \d+ tokens, together"
             " 60,0.., but the context of the model has 256; use at most 2.. virtual tokens")
            for method in ("prompt", "prefix", "ptuning")
        ),
        (LONG, {"method": "prefix", "max_length": 241}, r"16 virtual .*row 9.* 241 tokens, .* 257.* max_length to 240"),
        (LONG, {}, r"row 9\) has .* tokens, but the context of the model has 256; set max_length to 256"),
    ],
)  # fmt: skip
def test_virtual_tokens_and_documents_fit_in_the_context(tmp_path, data, options, message):
    with pytest.raises(ConfigError, match=message):
        puna.train(MODEL, data, output=tmp_path / "out", **options)


def test_virtual_tokens_of_an_adapter_and_held_out_documents_fit_in_the_context(tmp_path):
    options = {**FAST, "method": "prefix", "steps": 1}
    puna.train(MODEL, LONG, output=tmp_path / "out", max_length=240, **options)
    for changes in ({"adapter": str(tmp_path / "out")}, {"eval_data": LONG}):
        data = LONG if "adapter" in changes else ROWS
        with pytest.raises(ConfigError, match=r"16 virtual tokens, .*row 9.* 241 tokens, together 257"):
            puna.train(MODEL, data, output=tmp_path / "other", max_length=241, **options, **changes)


@pytest.mark.parametrize(("warmup", "is_noted"), [(1e9, True), (2, True), (1, False), (0.5, False)])
def test_a_warm_up_that_does_not_end_is_noted(tmp_path, warmup, is_noted):
    notes = puna.train(MODEL, ROWS, output=tmp_path / "out", steps=2, warmup=warmup, **FAST).notes
    text = f"warning: warmup is {warmup:,.0f} steps, but the run has 2, so the learning rate rises until the end"
    assert any(note.startswith(text) for note in notes) == is_noted


@pytest.mark.soak
def test_smollm2_learns_an_answer_from_its_gguf_file(smollm2, tmp_path):
    """LoRA with every default over the Q4_1 file of the default model, in its chat format."""
    messages = [{"role": "user", "content": "What is the code?"}, {"role": "assistant", "content": "puna-417"}]
    result = puna.train(smollm2, [{"messages": messages}] * 2, output=tmp_path / "out", steps=12, batch_size=1)
    assert result.losses[-1] < 0.2 * result.losses[0]
    llm = puna.LLM(smollm2, adapters={"code": result.path})
    assert "417" in llm.chat(messages[:1], adapter="code", temperature=0, max_tokens=12).text
    assert Path(result.path / "training.toml").exists()


def test_a_classifier_holds_out_a_tenth_unless_held_out_data_are_given(tmp_path):
    rows = [{"text": f"the cat {i}", "label": "cat"} for i in range(10)] + [
        {"text": f"a dog {i}", "label": "dog"} for i in range(10)
    ]
    options = {name: value for name, value in FAST.items() if name not in ("steps", "learning_rate", "batch_size")}
    result = puna.train(MODEL, rows, "classify", output=tmp_path / "share", steps=1, **options)
    record = json.loads((result.path / "run.json").read_text())
    assert (record["data"]["examples"], record["data"]["held_out"]) == (18, 2)
    assert (result.settings.batch_size, result.settings.learning_rate) == (16, 5e-4)
    result = puna.train(MODEL, rows, "classify", output=tmp_path / "data", steps=1, eval_data=rows[8:12], **options)
    record = json.loads((result.path / "run.json").read_text())
    assert (record["data"]["examples"], record["data"]["held_out"]) == (20, 4)


@pytest.mark.parametrize(("method", "rate"), [("lora", 5e-4), ("qlora", 5e-4), ("full", None), ("ia3", None)])
def test_the_default_rate_of_classifiers_is_for_lora(method, rate):
    assert task_defaults("classify", {"method": method}).get("learning_rate") == rate


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({}, None), ({"method": "qlora"}, 512), ({"method": "ia3", "quantized": True}, 512), ({"method": "full"}, None)],
)
def test_packed_matrices_have_smaller_passes(options, tokens):
    assert task_defaults("sft", options).get("micro_batch_tokens") == tokens


def test_no_model_is_the_default_model(tmp_path, monkeypatch):
    monkeypatch.setattr("puna.training.api.locate_model", lambda path: {None: MODEL}[path])
    result = puna.train(None, ROWS, output=tmp_path / "out", **{**FAST, "steps": 1})
    assert result.settings.model == str(MODEL)


def test_texts_in_memory_are_not_stored_as_names_of_files(tmp_path):
    options = {"steps": 1, "output": tmp_path / "run"}
    result = puna.train(LAYOUTS["hf"], ["The llama lives high.", "It eats grass."], **options)
    assert result.settings.data is None
    with pytest.raises(ConfigError, match="there is no training data"):
        run_training(result.settings)
    with pytest.raises(ModelNotFoundError, match="'missing': no such file"):
        run_training(result.settings.changed(data=("missing", "nor this"), output=str(tmp_path / "other")))
