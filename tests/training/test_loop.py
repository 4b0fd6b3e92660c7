"""The loop of training: losses, accumulation, evaluation, and steps that must not happen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from puna import LlamaForCausalLM, load_tokenizer
from puna.errors import ConfigError, TrainingError
from puna.training.api import train
from puna.training.batch import Batch
from puna.training.events import Observer
from puna.training.forward.reference import ReferenceForward
from puna.training.methods.table import METHODS
from puna.training.optimizers.adamw import AdamW
from puna.training.plan import Plan, group, plan_run
from puna.training.safety import SpikeDetector
from puna.training.settings import TrainingSettings
from puna.training.trainer import Trainer
from tests.training.tiny import MODEL, OPTIONS, PlainText, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def examples(data):
    return PlainText().read(data, None, load_tokenizer(MODEL))


def weights_of(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def new_trainer(task: PlainText | None = None) -> Trainer:
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    settings = TrainingSettings.of(OPTIONS)
    trainable = METHODS["full"].attach(model, None, settings)
    optimizer = AdamW(trainable.parameters, settings)
    return Trainer(task or PlainText(), trainable, ReferenceForward(trainable), optimizer, load_tokenizer(MODEL))


def gradients(trainer: Trainer, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.optimizer.zero_gradients()
    weight = math.fsum(batch.total_weight for batch in batches)
    loss = math.fsum(trainer.forward_backward(batch, 1 / weight).loss for batch in batches)
    return loss, {name: item.grad.clone() for name, item in trainer.trainable.parameters.items()}


def test_losses_of_50_steps_equal_those_of_transformers(data, examples, tmp_path, registered):
    """transformers' model and a plain AdamW loop on padded batches in the same order: 1e-4."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = transformers.get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=50)
    options = {**OPTIONS, "steps": 50, "schedule": "cosine", "weight_decay": 0.01}
    plan = plan_run(examples, None, TrainingSettings(model=MODEL, **options))
    expected = []
    for step in range(50):
        batch = Batch.of([example for part in plan.window(step) for example in documents(part)], 0)
        ids, labels = padded(batch)
        loss = model(input_ids=ids, attention_mask=(labels != -1).long(), labels=labels.where(labels != -1, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    result = train(MODEL, data, output=tmp_path / "out", **options)
    assert len(result.losses) == 50
    np.testing.assert_allclose(result.losses, expected, atol=1e-4, rtol=0)
    assert expected[0] - expected[-1] > 0.01  # the comparison is of a run that learns


def documents(batch: Batch):
    from puna.training.batch import Example

    starts = np.cumsum((0, *batch.lengths))
    for start, length, source in zip(starts, batch.lengths, batch.sources, strict=False):
        part = slice(start, start + length)
        yield Example(batch.ids[part].astype(np.int32), batch.weights[part], None, source)


def padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and labels, (documents, longest), for transformers; padding has the label -1."""
    parts = torch.from_numpy(batch.ids).split(batch.lengths)
    ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=0)
    labels = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-1)
    return ids, labels


@pytest.mark.parametrize("tokens", [1, 30, 61])
def test_gradients_do_not_depend_on_how_a_step_is_split(examples, tokens):
    """Answers of different lengths: a mean of means would differ by several per cent."""
    trainer = new_trainer()
    documents = [examples[index] for index in range(8)]
    for index, example in enumerate(documents):
        example.weights[: 1 + 2 * index] = 0  # other numbers of supervised tokens
    whole_loss, whole = gradients(trainer, [Batch.of(documents, 0)])
    parts = [[documents[place] for place in places] for places in group(documents, tokens, packing=True)]
    assert len(parts) > 1
    loss, split = gradients(trainer, [Batch.of(part, 0) for part in parts])
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, expected in whole.items():
        assert (split[name] - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max())), name
    means = [gradients(trainer, [Batch.of(part, 0)])[0] for part in parts]
    assert abs(np.mean(means) - whole_loss) > 1e-3  # the property is not trivial for these documents


def test_an_evaluation_changes_no_gradient_and_no_random_state(examples):
    trainer = new_trainer()
    batch = Batch.of([examples[index] for index in range(4)], 5)
    before_loss, before = gradients(trainer, [batch])
    trainer.optimizer.zero_gradients()
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    metrics = trainer.evaluate([Batch.of([examples[5]], 0), Batch.of([examples[6]], 0)])
    trainer.sample(["The"], 3)
    assert metrics["loss"] > 0
    assert all(item.grad is None for item in trainer.trainable.parameters.values())
    assert torch.equal(torch.random.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    after_loss, after = gradients(trainer, [batch])
    assert after_loss == before_loss and all(torch.equal(after[name], before[name]) for name in before)


def test_evaluations_samples_and_saves_do_not_change_the_result(data, tmp_path, registered):
    common = {**OPTIONS, "steps": 6, "eval_share": 0.2}
    plain = train(MODEL, data, output=tmp_path / "a", **common)
    state = torch.random.get_rng_state()
    busy = train(
        MODEL, data, output=tmp_path / "b", **common,
        eval_steps=1, save_steps=1, sample_prompts=["The"], sample_tokens=2,
    )  # fmt: skip
    assert busy.losses == plain.losses and weights_of(busy.path) == weights_of(plain.path)
    assert busy.metrics == plain.metrics
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_samples_are_the_most_likely_tokens_of_the_training_forward(method):
    """The reference repeats the forward pass of training for every token, without a cache."""
    settings = TrainingSettings(method=method)
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = load_tokenizer(MODEL)
    trainable = METHODS[method].attach(model, tokenizer, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    forward = ReferenceForward(trainable)
    trainer = Trainer(PlainText(), trainable, forward, AdamW(trainable.parameters, settings), tokenizer)
    ids, expected = tokenizer.encode("Once upon a"), []
    forward.training = False
    for _ in range(6):
        row = np.array([*ids, *expected])
        with torch.no_grad():
            states = forward.hidden(Batch(row, (len(row),), np.ones(len(row), np.float32), None, (), (0,)))
            expected.append(int(model.lm_head(states[-1:]).argmax()))
    assert trainer.sample(["Once upon a"], 6) == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_the_weighted_mean_of_held_out_losses_is_reported(data, tmp_path, registered):
    result = train(MODEL, data, output=tmp_path / "a", eval_data=data, **OPTIONS, steps=2)
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(result.path)
    total = count = 0
    for line in Path(data).read_text().splitlines():
        ids = torch.tensor([load_tokenizer(MODEL).encode(line)[:24]])
        total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert result.metrics["loss"] == pytest.approx(total / count, rel=1e-5)


class Poisoned(PlainText):
    """The loss of one document is multiplied by a factor from its second epoch on."""

    factor = math.nan
    from_step = 7

    def __init__(self) -> None:
        self.calls = 0

    def loss(self, forward, batch, scale):
        loss = super().loss(forward, batch, scale)
        self.calls += forward.training
        is_bad = any(source.row == 9 for source in batch.sources)
        return loss * self.factor if is_bad and self.calls > self.from_step else loss


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(data, tmp_path, registered, monkeypatch):
    monkeypatch.setitem(registered, "text", Poisoned)
    options = {**OPTIONS, "schedule": "constant", "seed": 3}
    with pytest.raises(TrainingError, match="the loss is nan") as error:
        train(MODEL, data, output=tmp_path / "a", steps=40, **options)
    number = int(str(error.value).split()[1])
    assert f"step {number} was not done" in str(error.value)
    assert f"{data}, line 9 (loss nan)" in str(error.value) and "Correct these rows" in str(error.value)
    monkeypatch.setitem(registered, "text", PlainText)
    healthy = train(MODEL, data, output=tmp_path / "b", steps=number - 1, **options)
    saved = tmp_path / "a" / "checkpoints" / f"step-{number - 1:08}" / "tensors.safetensors"
    expected = tmp_path / "b" / "checkpoints" / f"step-{number - 1:08}" / "tensors.safetensors"
    assert saved.read_bytes() == expected.read_bytes()
    assert healthy.losses and '"failed"' in (tmp_path / "a" / "run.json").read_text()


def test_a_weight_that_is_not_finite_is_named(data, tmp_path, registered):
    model = LlamaForCausalLM.from_pretrained(MODEL)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = math.nan
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(MODEL).save_pretrained(tmp_path / "model")
    with pytest.raises(TrainingError, match=r"step 1 was not done.*layers\.1\.mlp\.down_proj.* not finite") as error:
        train(str(tmp_path / "model"), data, output=tmp_path / "a", steps=4, **OPTIONS)
    assert "Correct these rows" not in str(error.value)


def test_a_spike_stops_before_the_optimizer_step(data, tmp_path, registered, monkeypatch):
    class Spike(Poisoned):
        factor, from_step = 30.0, 24

    monkeypatch.setitem(registered, "text", Spike)
    options = {**OPTIONS, "steps": 40, "max_gradient_norm": 0.0, "learning_rate": 1e-5}
    with pytest.raises(TrainingError, match=r"deviations above its moving mean.*spike_threshold = 6.*line 9 \(loss"):
        train(MODEL, data, output=tmp_path / "a", **options)
    assert len(train(MODEL, data, output=tmp_path / "b", spike_threshold=0, **options).losses) == 40


def test_spikes_are_found_by_their_deviation_from_the_moving_mean():
    generator = np.random.default_rng(0)
    detector = SpikeDetector(6.0)
    for loss, norm in np.exp(generator.normal(0, 0.4, (3000, 2))):  # healthy: log-normal
        assert detector.fault(loss, norm) is None
        detector.add(loss, norm)
    assert "gradient norm is 40" in (detector.fault(1.0, 40.0) or "")
    assert "loss is 40" in (detector.fault(40.0, 1.0) or "")
    assert "loss is inf" in (detector.fault(math.inf, 1.0) or "")
    restored = SpikeDetector(6.0)
    restored.load_state(detector.state())
    assert restored.fault(40.0, 1.0) == detector.fault(40.0, 1.0)
    assert SpikeDetector(6.0).fault(1e9, 1e9) is None  # nothing to compare with


def test_a_parameter_that_does_not_move_is_an_error(data, tmp_path, registered):
    with pytest.raises(TrainingError, match=r"trainable tensors did not change, such as .*raise the learning rate"):
        train(MODEL, data, output=tmp_path / "a", **{**OPTIONS, "learning_rate": 1e-30}, steps=3)


def test_a_frozen_parameter_that_changes_is_an_error(data, tmp_path, registered):
    class Leak(Observer):
        def stepped(self, event):
            if event.step == 2:
                with torch.no_grad():
                    frozen = next(iter(models)).get_buffer("model.rotary_emb.inv_freq")
                    frozen[0] += 1

    models = set()
    original = PlainText.load_model

    class Remembering(PlainText):
        def load_model(self, *arguments):
            models.add(original(self, *arguments))
            return next(iter(models))

    registered["text"] = Remembering
    with pytest.raises(TrainingError, match=r"1 frozen tensors changed.*inv_freq"):
        train(MODEL, data, output=tmp_path / "a", **OPTIONS, steps=3, callbacks=[Leak()])


def test_a_callback_ends_the_run_after_its_step(data, tmp_path, registered):
    events = []

    def stop(event):
        events.append(event)
        return event.get("step") == 3

    result = train(MODEL, data, output=tmp_path / "a", **OPTIONS, steps=9, callbacks=[stop])
    assert len(result.losses) == 3 and [event["loss"] for event in events] == result.losses
    assert events[0]["tokens"] > 0 and '"stopped"' in (result.path / "run.json").read_text()


def test_early_stopping_keeps_the_best_parameters(data, tmp_path, registered):
    losses = []

    class Record(Observer):
        def evaluated(self, event):
            losses.append(event.metrics["loss"])

    held_out = tmp_path / "held_out.txt"
    held_out.write_text("zzz qqq xxx jjj kkk vvv www\n")  # gets worse while the model learns the text
    options = {**OPTIONS, "learning_rate": 5e-3, "schedule": "constant", "eval_data": str(held_out), "eval_steps": 1}
    result = train(
        MODEL, data, output=tmp_path / "a", **options, steps=40, patience=3, keep_best=True, callbacks=[Record()]
    )
    best = int(np.argmin(losses))
    assert len(result.losses) == best + 4 < 40
    assert result.metrics["loss"] == min(losses)
    again = train(MODEL, data, output=tmp_path / "b", **options, steps=best + 1)
    assert weights_of(result.path) == weights_of(again.path)


def test_the_order_visits_every_document_once_per_epoch(examples):
    settings = TrainingSettings(batch_size=5, seed=11)
    plan = Plan(settings, examples, None, 10, 50)
    count = len(examples)
    visited = [plan._index(number) for number in range(2 * count)]
    assert sorted(visited[:count]) == sorted(visited[count:]) == list(range(count))
    assert visited[:count] != visited[count:]


@pytest.mark.parametrize(
    ("options", "steps", "documents"),
    [({}, 15, 72), ({"epochs": 0.5}, 3, 12), ({"steps": 7}, 7, 35), ({"steps": 7, "epochs": 1}, 5, 24)],
)
def test_steps_and_epochs_limit_a_run(examples, options, steps, documents):
    plan = plan_run(examples, None, TrainingSettings(batch_size=5, **options))
    assert len(examples) == 24
    assert (plan.steps, plan.documents) == (steps, documents)
    assert sum(len(batch.lengths) for step in range(plan.steps) for batch in plan.window(step)) == documents


def test_held_out_documents_never_train(examples):
    subset, held_out = PlainText().hold_out(examples, TrainingSettings(eval_share=0.25, seed=2))
    assert len(held_out) == 6 and sorted([*subset, *held_out]) == list(range(24))
    plan = plan_run(examples, subset, TrainingSettings(batch_size=4, epochs=3))
    rows = {source.row for step in range(plan.steps) for batch in plan.window(step) for source in batch.sources}
    assert rows == {examples[index].source.row for index in subset}
    with pytest.raises(ConfigError, match="no training documents"):
        plan_run(examples, np.empty(0, np.int64), TrainingSettings())
