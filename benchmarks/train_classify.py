"""Trains classifiers with puna, with peft, and with a logistic regression, and prints accuracy and time.

    python benchmarks/train_classify.py DATA.csv --model FOLDER --engine puna --method lora

DATA.csv has the columns text and label; every fifth row, from the first on, is held out. FOLDER is a model in Hugging
Face's layout (`puna convert MODEL FOLDER --to hf`). Both trainers have the same settings: bfloat16 frozen weights, LoRA
of rank 16 on all matrices of the layers, AdamW, a learning rate that falls linearly to 0 after a warm-up of 20 steps,
and the norm of the gradient clipped at 1. peft computes under autocast, its fastest way on a CPU. The regression
has the mean hidden states of the frozen model as features, or with `--features last` the state of the last token, and
chooses its L2 penalty by cross-validation in four parts of the rows for training. `--rows N` and `--held-out N` choose
that many rows at random, the same for every engine.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import time
from pathlib import Path
from typing import Any

Rows = list[tuple[str, str]]

WARMUP = 20
CLIP = 1.0
MAX_LENGTH = 256
PENALTIES = [10.0 ** (exponent / 2) for exponent in range(-10, 3)]


def read(path: Path) -> tuple[Rows, Rows]:
    """Returns the rows for training and the held-out rows."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    return [row for index, row in enumerate(rows) if index % 5], rows[::5]


def chosen(rows: Rows, count: int) -> Rows:
    """Returns some of the rows at random, in their order; all of them if the count is 0."""
    if not count or count >= len(rows):
        return rows
    return [rows[index] for index in sorted(random.Random(0).sample(range(len(rows)), count))]


def train_puna(options: argparse.Namespace, rows: Rows, held_out: Rows) -> dict[str, Any]:
    """Trains with `puna.train`."""
    import puna

    started = time.perf_counter()
    seconds: list[float] = []
    tokens: list[int] = []

    def watch(event: dict[str, Any]) -> bool:
        if "tokens" in event:
            seconds.append(event["seconds"])
            tokens.append(event["tokens"])
        return bool(options.seconds and time.perf_counter() - started > options.seconds)

    result = puna.train(
        options.model, [{"text": text, "label": label} for text, label in rows], "classify", method=options.method,
        eval_data=[{"text": text, "label": label} for text, label in held_out], epochs=options.epochs,
        batch_size=options.batch_size, learning_rate=options.rate, warmup=WARMUP, schedule="linear",
        max_gradient_norm=CLIP, max_length=MAX_LENGTH, threads=options.threads, output=options.output,
        overwrite=not options.resume, resume=options.resume,
        callbacks=[watch], **json.loads(options.settings),
    )  # fmt: skip
    total = time.perf_counter() - started
    names = ("accuracy", "f1_macro", "auc", "loss", "confusion_matrix", "labels")
    metrics = {name: result.metrics.get(name) for name in names}
    return {"steps": len(seconds), "seconds": sum(seconds), "total": total, "tokens": sum(tokens), **metrics}


def train_peft(options: argparse.Namespace, rows: Rows, held_out: Rows) -> dict[str, Any]:
    """Trains with transformers and peft; texts of a batch are padded to the longest."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    labels = sorted({label for _, label in rows})
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(labels), dtype=torch.bfloat16, pad_token_id=tokenizer.eos_token_id
    )
    settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
    model = peft.get_peft_model(model, settings)
    for parameter in (item for item in model.parameters() if item.requires_grad):
        parameter.data = parameter.data.float()

    def batch(part: Rows) -> dict[str, Any]:
        ids = [tokenizer(text)["input_ids"][:MAX_LENGTH] for text, _ in part]
        longest = max(map(len, ids))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        padded = torch.tensor([row + [tokenizer.eos_token_id] * (longest - len(row)) for row in ids])
        return {"input_ids": padded, "attention_mask": mask, "labels": torch.tensor([labels.index(b) for _, b in part])}

    trained = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0, fused=True)
    steps = math.ceil(options.epochs * len(rows) / options.batch_size)
    tokens, seconds, step = 0, 0.0, 0
    generator = torch.Generator().manual_seed(0)
    order = [int(i) for _ in range(math.ceil(options.epochs)) for i in torch.randperm(len(rows), generator=generator)]
    for step in range(steps):
        begun = time.perf_counter()
        part = batch([rows[i] for i in order[step * options.batch_size : (step + 1) * options.batch_size]])
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min((step + 1) / WARMUP, (steps - step) / max(1, steps - WARMUP))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**part).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        tokens, seconds = tokens + int(part["attention_mask"].sum()), seconds + time.perf_counter() - begun
        if options.seconds and time.perf_counter() - started > options.seconds:
            break
    result: dict[str, Any] = {"steps": step + 1, "seconds": seconds, "tokens": tokens}
    if step + 1 == steps:
        result["accuracy"] = _accuracy(model, batch, held_out)
    return result | {"total": time.perf_counter() - started}


def _accuracy(model: Any, batch: Any, held_out: Rows) -> float:
    import torch

    model.eval()
    correct = 0
    ranking = sorted(held_out, key=lambda row: len(row[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(ranking), 32):
            part = batch(ranking[start : start + 32])
            correct += int((model(**part).logits.argmax(-1) == part["labels"]).sum())
    return correct / len(held_out)


def fit_regression(features: Any, labels: Any, classes: int, penalty: float) -> tuple[Any, Any]:
    """Returns the weights, (D, C), and the bias, (C,), with the least mean loss + penalty / 2 x squared weights."""
    import torch

    weight = torch.zeros(features.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Any:
        optimizer.zero_grad()
        value = (
            torch.nn.functional.cross_entropy(features @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def train_regression(options: argparse.Namespace, rows: Rows, held_out: Rows) -> dict[str, Any]:
    """Fits a logistic regression to standardised features of the frozen model."""
    import torch

    from puna import LLM

    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    names = sorted({label for _, label in rows})
    with LLM(options.model, threads=options.threads, max_batch=32) as llm:
        train, test = (
            torch.from_numpy(llm.embed([text or " " for text, _ in part], pooling=options.features)).double()
            for part in (rows, held_out)
        )
    mean, deviation = train.mean(0), train.std(0, correction=0)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    labels, expected = (torch.tensor([names.index(label) for _, label in part]) for part in (rows, held_out))

    def correct(fold: Any, others: Any, penalty: float) -> int:
        weight, bias = fit_regression(train[others], labels[others], len(names), penalty)
        return int(((train[fold] @ weight + bias).argmax(1) == labels[fold]).sum())

    part = torch.arange(len(rows)) % 4
    scores = {
        penalty: sum(correct(part == fold, part != fold, penalty) for fold in range(4)) / len(rows)
        for penalty in PENALTIES
    }
    best = max(PENALTIES, key=lambda penalty: (scores[penalty], penalty))
    weight, bias = fit_regression(train, labels, len(names), best)
    right = int(((test @ weight + bias).argmax(1) == expected).sum())
    return {
        "accuracy": right / len(held_out), "errors": len(held_out) - right, "penalty": best,
        "cross_validation": scores, "total": time.perf_counter() - started,
    }  # fmt: skip


ENGINES = {"puna": train_puna, "peft": train_peft, "regression": train_regression}


def main() -> None:
    """Runs one engine and prints the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, help="folder in Hugging Face's layout")
    parser.add_argument("--engine", choices=ENGINES, default="puna")
    parser.add_argument("--method", default="lora", help="method of puna.train")
    parser.add_argument("--settings", default="{}", help="further settings of puna.train, as JSON")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after this time; 0: train to the end")
    parser.add_argument("--rows", type=int, default=0, help="rows for training; 0: all")
    parser.add_argument("--held-out", type=int, default=0, help="held-out rows; 0: all")
    parser.add_argument("--features", choices=["mean", "last"], default="mean")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="runs/train-classify")
    parser.add_argument(
        "--resume", action="store_true", help="continue the interrupted run of puna in the folder --output"
    )
    options = parser.parse_args()
    rows, held_out = read(options.data)
    rows, held_out = chosen(rows, options.rows), chosen(held_out, options.held_out)
    if options.seconds:  # only the speed matters
        held_out = held_out[:32]
    result = {"engine": options.engine, **ENGINES[options.engine](options, rows, held_out)}
    print(json.dumps(result | {"processor_seconds": time.process_time()}))


if __name__ == "__main__":
    main()
