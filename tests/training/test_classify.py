"""The task `classify`: losses and gradients of transformers' LlamaForSequenceClassification; metrics; the head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from puna import train
from puna.errors import ConfigError, DataError, TrainingError
from puna.tokenizer import load_tokenizer
from puna.training.batch import Batch
from puna.training.metrics import evaluate_labels
from puna.training.report.metrics import read_metrics
from puna.training.settings import TrainingSettings
from puna.training.tasks.classify import Classify, last_positions
from puna.training.trainer import Trainer
from tests.golden.files import LAYOUTS

TEXTS = ["the llama lives in the grass", "grass", "a herd of llamas", "x y"]
PROBLEMS = {
    "single": ["b", "a", "c", "a"],
    "multi": [["b"], [], ["a", "c"], ["a"]],
    "regression": [1.5, -2.0, 0.25, 3.0],
    "vectors": [[1.5, 0], [-2.0, 1], [0.25, 2], [3.0, -1]],
}


class PlainForward:
    """One call of the model for each document."""

    name, training = "plain", True

    def __init__(self, model):
        self._model = model

    def hidden(self, batch):
        ids = torch.from_numpy(batch.ids)
        return torch.cat([self._model.model(part[None])[0][0] for part in ids.split(batch.lengths)])


def prepare(problem, texts=TEXTS, **settings):
    """Returns the task, its forward pass and the batch of all texts."""
    settings = TrainingSettings.of({
        "model": str(LAYOUTS["hf"]), "dtype": "float32", "problem": problem.replace("vectors", "regression"), **settings
    })  # fmt: skip
    task = Classify()
    tokenizer = load_tokenizer(settings.model)
    data = [{"text": text, "label": label} for text, label in zip(texts, PROBLEMS[problem], strict=False)]
    examples = task.read(data, settings, tokenizer)
    model = task.load_model(settings, examples)
    batch = Batch.of([examples[index] for index in range(len(examples))], 0)
    return task, PlainForward(model), model, batch


@pytest.mark.parametrize("problem", PROBLEMS)
def test_loss_and_gradients_are_those_of_transformers(problem):
    transformers = pytest.importorskip("transformers")
    task, forward, model, batch = prepare(problem)
    other = transformers.LlamaForSequenceClassification.from_pretrained(
        LAYOUTS["hf"], num_labels=model.config.num_labels, problem_type=model.config.problem_type
    )
    other.load_state_dict(model.state_dict())
    longest = max(batch.lengths)
    ids, mask = torch.zeros(len(TEXTS), longest, dtype=torch.long), torch.zeros(len(TEXTS), longest, dtype=torch.long)
    for row, part in enumerate(torch.from_numpy(batch.ids).split(batch.lengths)):
        ids[row, : len(part)], mask[row, : len(part)] = part, 1
    other.config.pad_token_id = 0
    expected = other(ids, attention_mask=mask, labels=torch.from_numpy(batch.labels)).loss
    expected.backward()
    loss = task.loss(forward, batch, 1 / task.weight(batch))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = dict(other.named_parameters())
    for name in ("score.weight", "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        gradient = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(gradient, gradients[name].grad, rtol=1e-4, atol=1e-6)


def test_the_advice_of_the_note_on_a_regression_makes_names_of_classes():
    tokenizer = load_tokenizer(LAYOUTS["hf"])

    def read(labels, problem):
        task, data = Classify(), [{"text": "grass", "label": label} for label in labels]
        return task.read(data, TrainingSettings.of({"problem": problem}), tokenizer).labels.names, task.notes

    (note,) = read([1.5, 2.5], "auto")[1]
    assert "set problem to single and write them as texts" in note
    with pytest.raises(DataError, match="must be a name or a whole number"):
        read([1.5, 2.5], "single")
    assert read(["1.5", "2.5"], "single") == (("1.5", "2.5"), ())


def test_the_head_has_the_labels_of_the_data():
    _, _, model, _ = prepare("single")
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.config.problem_type == "single_label_classification"
    assert model.score.weight.shape == (3, 64) and 0 < model.score.weight.std() < 0.1


@pytest.mark.parametrize("weights", [(2.0, 1.0, 0.5), "balanced"])
def test_class_weights_of_single_labels(weights):
    task, forward, _, batch = prepare("single", class_weights=weights)
    numbers = torch.tensor([4 / 6, 4 / 3, 4 / 3] if weights == "balanced" else weights)
    logits = task.logits(forward, batch)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels), numbers)
    assert task.loss(forward, batch, 1 / task.weight(batch)).item() == pytest.approx(expected.item(), rel=1e-6)
    plain = prepare("single")[0]
    assert plain.weight(batch) == 4


def test_class_weights_of_several_labels():
    task, forward, _, batch = prepare("multi", class_weights="balanced")
    logits, targets = task.logits(forward, batch), torch.from_numpy(batch.labels)
    numbers = torch.tensor([1.0, 3.0, 3.0])
    parts = -(numbers * targets * torch.nn.functional.logsigmoid(logits))
    parts = parts - (1 - targets) * torch.nn.functional.logsigmoid(-logits)
    assert task.loss(forward, batch, 1 / task.weight(batch)).item() == pytest.approx(parts.mean().item(), rel=1e-6)


def test_class_weights_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="class_weights has 2 numbers, but there are 3 labels: 'a', 'b', 'c'"):
        prepare("single", class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="a regression has no classes; leave it out"):
        prepare("regression", class_weights="balanced")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_loss_does_not_depend_on_the_division_into_batches(problem):
    task, forward, model, batch = prepare(problem)
    scale = 1 / task.weight(batch)
    whole = task.loss(forward, batch, scale)
    starts = np.cumsum((0, *batch.lengths))
    parts = []
    for one, other in ((0, 1), (1, 4)):
        documents = slice(one, other)
        tokens = slice(starts[one], starts[other])
        parts.append(
            Batch(batch.ids[tokens], batch.lengths[documents], batch.weights[tokens], batch.labels[documents],
                  batch.sources[documents], batch.seeds[documents])
        )  # fmt: skip
    total = sum(task.loss(forward, part, scale) for part in parts)
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    with torch.no_grad():
        together, split = task.evaluate(forward, [batch]), task.evaluate(forward, parts)
    assert together["loss"] == pytest.approx(whole.item(), rel=1e-6) == split["loss"]
    expected = evaluate_labels(
        model.config.problem_type, batch.labels, task.logits(forward, batch).detach().double().numpy(),
        list(model.config.id2label.values()),
    )  # fmt: skip
    names = expected.keys() & {"accuracy", "f1_macro", "auc", "mean_squared_error", "pearson"}
    assert len(names) in (2, 3)
    for name in names:
        assert split[name] == pytest.approx(expected[name], rel=1e-5), name
    assert set(split.get("roc", {})) == ({"a", "b", "c"} if "accuracy" in split else set())


def test_the_head_reads_the_last_token_that_is_not_padding():
    ids = np.array([5, 9, 9, 9, 7, 8, 9, 9], np.int64)
    batch = Batch(ids, (3, 5), np.zeros(8, np.float32), np.array([0, 1]), (), (0, 0))
    assert last_positions(batch, 9).tolist() == [0, 5]
    assert last_positions(batch, None).tolist() == [2, 7]


def test_a_classifier_with_other_labels_is_refused(tmp_path):
    _, _, model, _ = prepare("single")
    model.save_pretrained(tmp_path / "classifier")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"):
        if (LAYOUTS["hf"] / file).exists():
            (tmp_path / "classifier" / file).write_bytes((LAYOUTS["hf"] / file).read_bytes())
    path = str(tmp_path / "classifier")
    _, _, again, _ = prepare("single", model=path)
    assert torch.equal(again.score.weight, model.score.weight)
    with pytest.raises(ConfigError, match="the model is a classifier with the labels 'a', 'b', 'c'"):
        prepare("single", model=path, labels=("b", "a", "c"))


@pytest.mark.parametrize("metric", ["f1_macro", "loss"])
def test_the_best_parameters_by_a_metric_are_kept(tmp_path, metric):
    texts = ["the llama is here", "wool of a herd", "grass and stones", "the sea"] * 6
    rows = [{"text": f"{text} {index}", "label": "ab"[index % 4 // 2]} for index, text in enumerate(texts)]
    values = []
    result = train(
        LAYOUTS["hf"], rows, "classify", output=tmp_path / "run", eval_share=0.25, steps=12, eval_steps=2, rank=2,
        batch_size=6, learning_rate=0.05, dtype="float32", best_metric=metric, keep_best=True,
        callbacks=[lambda event: values.append(event.get(f"eval_{metric}"))],
    )  # fmt: skip
    values = [value for value in values if value is not None]
    best = max(values) if metric == "f1_macro" else min(values)
    assert len(values) == 6 and result.metrics[metric] == best and len(set(values)) > 1


def test_a_metric_that_is_not_a_number_is_refused(tmp_path):
    rows = [{"text": f"llama {index}", "label": "ab"[index % 2]} for index in range(8)]
    with pytest.raises(TrainingError, match=r"best_metric is 'classes', .* choose one of loss, accuracy, f1_macro"):
        train(LAYOUTS["hf"], rows, "classify", output=tmp_path / "run", eval_share=0.25, steps=1, best_metric="classes")
    assert not read_metrics(tmp_path / "run").steps  # refused before the first step


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_result_whose_loss_is_not_finite_is_an_error(tmp_path):
    """The last step has finite gradients, but its rate makes the parameters useless."""
    rows = [{"text": f"llama {index}", "label": "ab"[index % 2]} for index in range(8)]
    options = {"eval_share": 0.25, "steps": 1, "learning_rate": 1e30}
    with pytest.raises(TrainingError, match=r"loss of the held-out data after step 1 is nan.*learning_rate \(1e\+30\)"):
        train(LAYOUTS["hf"], rows, "classify", output=tmp_path / "run", **options)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_state_whose_loss_is_not_finite_replaces_no_earlier_one(tmp_path, monkeypatch):
    rows = [{"text": f"llama {index}", "label": "ab"[index % 2]} for index in range(8)]
    options = {"eval_share": 0.25, "steps": 2, "eval_steps": 2, "save_steps": 1, "keep_last": 1}
    states = tmp_path / "run" / "checkpoints"
    monkeypatch.setattr(Trainer, "evaluate", lambda self, batches: {"loss": math.nan})
    with pytest.raises(TrainingError, match=r"after step 2 is nan.*; the state after step 1 is in .*step-00000001"):
        train(LAYOUTS["hf"], rows, "classify", output=tmp_path / "run", **options)
    assert [path.name for path in states.glob("step-*")] == ["step-00000001"]
