"""`transformers.Trainer` and the trainers of trl with puna's models: they train, save, and resume as with their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

import puna
from tests.helpers.reference_models import transformers_config
from tests.libraries.models import new_model

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(4, 200, (8, 7)).tolist()]


def arguments(folder: Path, kind: type[Any] = TrainingArguments, **options: Any) -> Any:
    """Returns the arguments of two steps on the CPU, without reports."""
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "seed": 1}
    return kind(str(folder), **{"max_steps": 2, "per_device_train_batch_size": 2, **quiet, **options})


def reference_of(model: Any) -> Any:
    """Returns the model of transformers with the same weights."""
    reference = transformers.LlamaForCausalLM(transformers_config(model.config))
    reference.load_state_dict(model.state_dict())
    return reference


def losses(trainer: Any) -> list[float]:
    """Returns the loss of each step."""
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        {"neftune_noise_alpha": 5.0},
    ],
    ids=str,
)
def test_losses_equal_those_of_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    model = new_model()
    results = []
    for each in (model, reference_of(model)):
        trainer = Trainer(each, arguments(tmp_path, save_strategy="no", **options), train_dataset=ROWS)
        trainer.train()
        results.append(losses(trainer))
    assert len(results[0]) == 2
    assert results[0] == pytest.approx(results[1], rel=0.01 if options.get("bf16") else 1e-4)


def test_checkpoints_are_complete_and_training_is_resumed(tmp_path: Path) -> None:
    straight = Trainer(new_model(), arguments(tmp_path / "one", save_strategy="no", max_steps=4), train_dataset=ROWS)
    straight.train()
    first = Trainer(new_model(), arguments(tmp_path / "two", save_steps=2, max_steps=4), train_dataset=ROWS)
    first.train()
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "two/checkpoint-2").iterdir()}
    loaded = puna.LlamaForCausalLM.from_pretrained(tmp_path / "two/checkpoint-2")
    assert loaded.config.hidden_size == 48
    resumed = Trainer(new_model(), arguments(tmp_path / "two", max_steps=4), train_dataset=ROWS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "two/checkpoint-2"))
    weights = straight.model.state_dict()
    for trainer in (first, resumed):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.model.state_dict().items())
    resumed.save_model(str(tmp_path / "final"))
    saved = puna.LlamaForCausalLM.from_pretrained(tmp_path / "final")
    assert torch.equal(saved.lm_head.weight, weights["lm_head.weight"])
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path / "final").config.hidden_size == 48


def test_a_classifier_is_evaluated(tmp_path: Path, tokenizer: Any) -> None:
    texts = [{**tokenizer(text), "labels": label} for text, label in (("good", 1), ("bad, very bad", 0)) * 4]
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = Trainer(
        new_model(puna.LlamaForSequenceClassification, num_labels=2),
        arguments(tmp_path, save_strategy="no", max_steps=8, learning_rate=1e-2),
        train_dataset=texts,
        eval_dataset=texts,
        data_collator=collator,
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())},
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] == 1.0


# ---- trl


def trl_arguments(folder: Path, kind: type[Any], **options: Any) -> Any:
    """Returns the arguments of a trainer of trl."""
    return arguments(folder, kind, bf16=False, save_strategy="no", **options)


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_trl_fine_tunes_on_texts_and_chats(adapted: bool, tmp_path: Path, tokenizer: Any) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    for rows in ([{"text": "The cat sat on the mat."}] * 8, [{"messages": chat}] * 8):
        options: dict[str, Any] = {}
        if adapted:
            options["peft_config"] = pytest.importorskip("peft").LoraConfig(task_type="CAUSAL_LM")
        trainer = trl.SFTTrainer(
            model=new_model(),
            args=trl_arguments(tmp_path, trl.SFTConfig, max_length=64, learning_rate=1e-2),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            **options,
        )
        trainer.train()
        first, last = losses(trainer)[0], losses(trainer)[-1]
        assert last < first
    trainer.save_model(str(tmp_path / "saved"))
    if not adapted:
        assert puna.LlamaForCausalLM.from_pretrained(tmp_path / "saved").config.vocab_size == 260


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"packing": True},
        {"packing": True, "packing_strategy": "wrapped"},
        {"padding_free": True, "max_length": None},
        {"packing": True, "gradient_checkpointing": True, "per_device_train_batch_size": 1},
    ],
    ids=str,
)
def test_trl_trains_on_packed_rows_as_with_transformers(
    options: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model = new_model()
    results = []
    for each in (model, reference_of(model)):
        trainer = trl.SFTTrainer(
            model=each,
            args=trl_arguments(tmp_path, trl.SFTConfig, **{"max_length": 24, "learning_rate": 1e-2, **options}),
            train_dataset=datasets.Dataset.from_list(
                [{"text": "The cat"}, {"text": "sat on it."}, {"text": "Yes"}] * 6
            ),
            processing_class=tokenizer,
        )
        trainer.train()
        results.append(losses(trainer))
    assert len(results[0]) == 2
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"return_position_ids": False, "return_flash_attn_kwargs": True}, {"return_seq_idx": True}],
    ids=str,
)
def test_batches_without_padding_are_trained_as_padded_ones(options: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(4, 4 + n)), "labels": list(range(4, 4 + n))} for n in (3, 7, 5, 4)]
    pad = {"input_ids": 0, "labels": -100}

    def padded(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in features)
        batch = {
            name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in features])
            for name, value in pad.items()
        }
        return {**batch, "attention_mask": (batch["labels"] != -100).long()}

    results = []
    for collator in (padded, transformers.DataCollatorWithFlattening(**options)):
        trainer = Trainer(
            new_model(), arguments(tmp_path, save_strategy="no"), train_dataset=rows, data_collator=collator
        )
        trainer.train()
        results.append(losses(trainer))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.slow
def test_trl_trains_on_preferences(tmp_path: Path, tokenizer: Any) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    pairs = datasets.Dataset.from_list([{"prompt": "Say:", "chosen": " yes", "rejected": " no, never"}] * 8)
    trainer = trl.DPOTrainer(
        model=new_model(),
        ref_model=new_model(),
        args=trl_arguments(tmp_path, trl.DPOConfig, learning_rate=1e-3),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-3)  # both models are equal before the first step
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer = trl.RewardTrainer(
        model=new_model(puna.LlamaForSequenceClassification, num_labels=1),
        args=trl_arguments(tmp_path, trl.RewardConfig, learning_rate=1e-2),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.slow
def test_trl_trains_on_rewards(tmp_path: Path, tokenizer: Any) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    seen: list[str] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        seen.extend(completions)
        return [float(len(text)) for text in completions]

    trainer = trl.GRPOTrainer(
        model=new_model(),
        args=trl_arguments(tmp_path, trl.GRPOConfig, max_completion_length=6, num_generations=2),
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_list([{"prompt": "The cat"}] * 8),
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(seen) >= 4
    assert all(math.isfinite(loss) for loss in losses(trainer))
