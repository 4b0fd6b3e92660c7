"""stories260K generates the story published with llama2.c, token for token, from every layout that puna reads."""

from __future__ import annotations

import pytest

from puna import LLM
from tests.golden.stories import read_stories, write_gguf, write_hf
from tests.helpers.torch_files import BACKENDS


@pytest.fixture(scope="module", params=["hf", "gguf"])
def model_path(request, shared, tmp_path_factory):
    stories = read_stories(shared / "fixtures/stories260K")
    path = tmp_path_factory.mktemp("stories") / ("model.gguf" if request.param == "gguf" else "model")
    (write_gguf if request.param == "gguf" else write_hf)(stories, path)
    return path


@pytest.fixture(scope="module")
def story(shared):
    return (shared / "fixtures/stories260K/expected_greedy_200steps.txt").read_text().rstrip("\n")


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_text_equals_the_published_text(model_path, story, backend):
    if backend == "torch":
        pytest.importorskip("torch")
    completion = LLM(model_path, backend, dtype="float32").generate("", max_tokens=200)
    assert completion.prompt_ids == (1,)
    assert len(completion.ids) == 200
    assert completion.text == story


def test_streamed_and_generated_tokens_agree(model_path, story):
    assert "".join(LLM(model_path).stream("", max_tokens=200)) == story
    torch = pytest.importorskip("torch")
    from puna import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_path)
    ids = model.generate(torch.tensor([[1]]), max_new_tokens=200, do_sample=False)
    assert LLM(model_path).tokenizer.decode(ids[0].tolist(), skip_special_tokens=True) == story


def test_a_prompt_read_in_chunks_has_the_same_continuation(model_path, story):
    llm = LLM(model_path)
    prompt = story[:150]
    generated = llm.generate(prompt, max_tokens=40)
    llm._engine.scheduler.chunk = 7
    assert llm.generate(prompt, max_tokens=40).text == generated.text
    assert generated.ids == llm.generate(list(generated.prompt_ids), max_tokens=40).ids
