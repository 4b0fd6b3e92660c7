"""`puna.pipeline` and `transformers.pipeline` with puna's models and tokenizers."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import puna
from puna.errors import MissingExtraError, RequestError
from tests.libraries.models import new_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


def test_text_generation_continues_texts_and_chats(folder: Path) -> None:
    write = puna.pipeline("text-generation", model=folder)
    tokenizer, model = puna.AutoTokenizer.from_pretrained(folder), puna.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("The cat", return_tensors="pt")
    expected = tokenizer.decode(model.generate(**ids, **GREEDY)[0], skip_special_tokens=True)
    assert write("The cat", **GREEDY)[0]["generated_text"] == expected
    texts = ["The cat", "A considerably longer text"]
    batch = write(texts, batch_size=2, return_full_text=False, **GREEDY)
    single = [write(text, return_full_text=False, **GREEDY) for text in texts]
    assert batch == single
    answer = write([{"role": "user", "content": "Hi"}], **GREEDY)[0]["generated_text"]
    assert [message["role"] for message in answer] == ["user", "assistant"]
    assert len(write("A", num_return_sequences=2, do_sample=True, max_new_tokens=3)) == 2


def test_classification_has_the_scores_of_the_model(folder: Path, tokenizer: Any) -> None:
    model = new_model(puna.LlamaForSequenceClassification, id2label={0: "bad", 1: "fine", 2: "good"})
    for task in ("text-classification", "sentiment-analysis", None):
        classify = puna.pipeline(task, model=model, tokenizer=tokenizer)
        (scores,) = classify(["A lovely film."], top_k=None)
        with torch.no_grad():
            expected = model(**tokenizer("A lovely film.", return_tensors="pt")).logits[0].softmax(-1)
        assert {row["label"]: row["score"] for row in scores} == pytest.approx(
            {"bad": expected[0].item(), "fine": expected[1].item(), "good": expected[2].item()}, abs=1e-6
        )
    labels = puna.pipeline("ner", new_model(puna.LlamaForTokenClassification), tokenizer=tokenizer)("Hi")
    assert {"entity", "score", "index", "word", "start", "end"} <= labels[0].keys()
    states = puna.pipeline(model=model.model, tokenizer=str(folder))("Hi")
    assert torch.tensor(states).shape[0::2] == (1, 48)


def test_the_pipelines_of_transformers_accept_the_objects(folder: Path, tokenizer: Any) -> None:
    write = transformers.pipeline("text-generation", model=new_model(), tokenizer=tokenizer)
    assert write("The cat", **GREEDY)[0]["generated_text"].startswith("The cat")


def test_arguments_of_the_model_are_used_when_it_is_loaded(folder: Path) -> None:
    for arguments in ({"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}, {"model_kwargs": {"dtype": "bfloat16"}}):
        write = puna.pipeline("text-generation", folder, trust_remote_code=True, local_files_only=True, **arguments)
        assert write.model.dtype == torch.bfloat16


def test_invalid_arguments_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    for arguments, message in (
        ({"task": "translation", "model": model}, "'translation'; puna's models support 'text-generation'"),
        ({"task": "text-generation"}, "needs a model"),
        ({"model": "some/path"}, "task is None"),
        ({"task": "text-generation", "model": model}, "pass tokenizer="),
    ):
        with pytest.raises(RequestError, match=message):
            puna.pipeline(**arguments)
    real = builtins.__import__

    def without_transformers(name: str, *arguments: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError(name="transformers")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(MissingExtraError, match="pip install transformers"):
        puna.pipeline("text-generation", model)
