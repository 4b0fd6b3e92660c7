"""From a CSV file to a served classifier: the numbers of training, of `LLM`, of the command and over HTTP agree."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import numpy as np
import pytest

from puna import LLM, AsyncLLM
from tests.cli.test_cli import as_json
from tests.golden.files import LAYOUTS
from tests.helpers.torch_files import needs_torch
from tests.server.live import live_server

pytestmark = needs_torch

WORDS = {"animal": ["llama", "herd", "wool"], "place": ["grass", "land", "sea"], "thing": ["stone", "house", "road"]}
METHODS = {"lora": {"rank": 4}, "prompt": {"virtual_tokens": 4}, "ia3": {}, "prefix": {"virtual_tokens": 4}}


def rows(count):
    """Returns texts, each with words of its label."""
    rng = np.random.default_rng(5)
    kinds = [list(WORDS)[index % 3] for index in range(count)]
    return [(f"the {' '.join(rng.choice(WORDS[kind], 2))} is here", kind) for kind in kinds]


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory):
    """Returns the result of a training on a CSV file, and held-out texts with their labels."""
    from puna import train

    folder = tmp_path_factory.mktemp("classifier")
    data = rows(60)
    for name, part in (("train", data[:48]), ("test", data[48:])):
        lines = "".join(f'"{text}",{label}\n' for text, label in part)
        (folder / f"{name}.csv").write_text(f"text,label\n{lines}")
    result = train(
        LAYOUTS["hf"], folder / "train.csv", "classify", method=request.param, output=folder / "adapter",
        eval_data=folder / "test.csv", steps=12, batch_size=24, learning_rate=2e-2, dtype="float32",
        **METHODS[request.param],
    )  # fmt: skip
    return result, data[48:]


def test_the_classifier_learns(trained):
    result, _ = trained
    assert np.mean(result.losses[-2:]) < 0.9 * result.losses[0]
    assert result.metrics["labels"] == ["animal", "place", "thing"]
    assert set(result.metrics["roc"]) == {"animal", "place", "thing"}


def test_llm_computes_the_metrics_of_the_training(trained):
    result, held_out = trained
    texts, labels = zip(*held_out, strict=True)
    with LLM(LAYOUTS["hf"], "torch", dtype="float32", adapters={"kinds": result.path}) as llm:
        answers = llm.classify(list(texts), adapter="kinds")
    assert answers[0].labels == ("animal", "place", "thing")
    correct = [answer.label == label for answer, label in zip(answers, labels, strict=True)]
    assert np.mean(correct) == result.metrics["accuracy"]
    loss = -np.mean(
        [np.log(answer.scores[answer.labels.index(label)]) for answer, label in zip(answers, labels, strict=True)]
    )
    assert loss == pytest.approx(result.metrics["loss"], rel=1e-4)


def test_the_server_and_the_command_give_the_numbers_of_llm(trained):
    result, held_out = trained
    texts, adapters = [text for text, _ in held_out], {"kinds": str(result.path)}
    model = AsyncLLM(LAYOUTS["hf"], "native", adapters=adapters)
    with live_server(model, adapters=adapters) as address:
        body = json.dumps({"model": "kinds", "input": texts}).encode()
        request = urllib.request.Request(f"{address}/v1/classify", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            document = json.load(response)
        expected = asyncio.run(model.classify(texts, adapter="kinds"))
    model.close()
    assert [(row["label"], tuple(row["probs"])) for row in document["data"]] == [
        (item.label, item.scores) for item in expected
    ]
    command = as_json(
        "classify", *texts, "-m", str(LAYOUTS["hf"]), "--backend", "native", "--adapter", str(result.path)
    )
    assert command["results"] == [
        {"label": item.label, "scores": [list(pair) for pair in zip(item.labels, item.scores, strict=True)]}
        for item in expected
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about its own names
def test_peft_and_transformers_load_the_classifier(trained):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    import torch

    result, held_out = trained
    config = transformers.AutoConfig.from_pretrained(result.path)
    base = transformers.LlamaForSequenceClassification.from_pretrained(LAYOUTS["hf"], config=config)
    model = peft.PeftModel.from_pretrained(base, result.path).eval()
    assert config.id2label == {0: "animal", 1: "place", 2: "thing"}
    with LLM(LAYOUTS["hf"], "torch", dtype="float32", adapters={"kinds": result.path}) as llm:
        answers = llm.classify([text for text, _ in held_out[:4]], adapter="kinds")
        for (text, _), answer in zip(held_out[:4], answers, strict=True):
            ids = torch.tensor([llm.tokenizer.encode(text)])
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            assert answer.logits == pytest.approx(logits.tolist(), abs=1e-5)
