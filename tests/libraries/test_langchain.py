"""LangChain's `HuggingFacePipeline` and `ChatHuggingFace` with puna's pipeline: texts as with transformers' model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import puna

langchain = pytest.importorskip("langchain_huggingface")
messages = pytest.importorskip("langchain_core.messages")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def chains(folder: Path) -> tuple[Any, Any]:
    """A chain with puna's objects, and one with those of transformers."""
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    ours = puna.pipeline("text-generation", model=folder, **options)
    theirs = transformers.pipeline("text-generation", model=str(folder), **options)
    assert isinstance(ours.model, puna.LlamaForCausalLM)
    assert not isinstance(theirs.model, puna.LlamaForCausalLM)
    return langchain.HuggingFacePipeline(pipeline=ours), langchain.HuggingFacePipeline(pipeline=theirs)


def test_texts_and_streams_equal_those_of_transformers(chains: tuple[Any, Any]) -> None:
    ours, theirs = chains
    text = ours.invoke("The cat")
    assert text.startswith("The cat") and len(text) > len("The cat")
    assert text == theirs.invoke("The cat")
    assert ours.batch(["The cat", "A longer text"]) == theirs.batch(["The cat", "A longer text"])
    assert ours.bind(skip_prompt=True).invoke("The cat") == text.removeprefix("The cat")
    assert "".join(ours.stream("The cat")) == text.removeprefix("The cat")
    assert [*ours.stream("The cat")] == [*theirs.stream("The cat")]
    assert [*ours.bind(stop=["x"]).stream("A")] == [*theirs.bind(stop=["x"]).stream("A")]
    sampled = ours.bind(pipeline_kwargs={"max_new_tokens": 2, "do_sample": True}).invoke("The cat")
    assert sampled.startswith("The cat")


def test_chats_use_the_template_of_the_tokenizer(chains: tuple[Any, Any]) -> None:
    ours, theirs = (langchain.ChatHuggingFace(llm=chain) for chain in chains)
    chat = [messages.SystemMessage("Be short."), messages.HumanMessage("Hi")]
    answer = ours.invoke(chat).content
    assert answer.startswith("system: Be short.\nuser: Hi\nassistant:")
    assert answer == theirs.invoke(chat).content
