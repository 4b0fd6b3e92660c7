"""The golden checkpoint reproduces the recorded ids, logits, texts and NLL, in every layout and on both backends.

expect.py recorded the values with other implementations. The tests of the native backend need neither PyTorch nor
transformers.
"""

from __future__ import annotations

import numpy as np
import pytest

from puna import LLM, load_tokenizer
from puna.backend import Chunk, consecutive_pages
from puna.checkpoint import open_checkpoint
from tests.golden.files import HELD_OUT, LAYOUTS, read_expected
from tests.helpers.torch_files import BACKENDS

EXPECTED = read_expected()

LOGITS_TOLERANCE = 3e-6
"""Limit of the error, relative to a row's largest logit. Measured on both backends: 6e-7. Doubling
rms_norm_eps changes logits by 3e-3."""


@pytest.fixture(scope="module", params=LAYOUTS)
def path(request):
    return LAYOUTS[request.param]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def llm(path, backend):
    return LLM(path, backend, dtype="float32")


@pytest.fixture(scope="module")
def hf_llm(backend):
    """The model in one layout, for tests that do not depend on the layout."""
    return LLM(LAYOUTS["hf"], backend, dtype="float32")


def test_every_layout_holds_the_same_weights():
    checkpoints = {layout: open_checkpoint(path) for layout, path in LAYOUTS.items()}
    tensors = checkpoints["hf"].tensors
    assert len(tensors) == 21
    for layout in ("gguf", "meta"):
        assert checkpoints[layout].tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(
                checkpoints[layout].tensors[name].to_float32(), tensor.to_float32(), f"{layout}: {name}"
            )


@pytest.mark.parametrize("example", EXPECTED["ids"], ids=lambda example: example["text"][:12])
def test_ids_equal_those_of_sentencepiece_and_transformers(path, example):
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode(example["text"]) == example["ids"]
    assert tokenizer.decode(example["ids"], skip_special_tokens=True) == example["text"]


def test_logits_equal_those_of_transformers(llm):
    ids = EXPECTED["logits"]["ids"]
    logits = llm._backend.forward([Chunk(consecutive_pages(len(ids)), np.array(ids), 0, len(ids))]).logits
    for row, expected in EXPECTED["logits"]["rows"].items():
        difference = np.abs(logits[int(row)] - np.array(expected)).max()
        assert difference < LOGITS_TOLERANCE * np.abs(expected).max(), row


@pytest.mark.parametrize("example", EXPECTED["texts"], ids=lambda example: example["prompt"])
def test_greedy_text_equals_that_of_transformers(llm, example):
    completion = llm.generate(example["prompt"], max_tokens=200)
    assert list(completion.prompt_ids) == example["prompt_ids"]
    assert completion.text == example["text"]
    assert list(completion.ids) == example["ids"]
    assert completion.finish_reason == example["finish_reason"]


def test_greedy_texts_do_not_depend_on_rounding():
    """The two largest logits differ by over 100 tolerances, so another order of summation yields the same text."""
    largest = max(np.abs(row).max() for row in EXPECTED["logits"]["rows"].values())
    assert min(example["smallest_gap"] for example in EXPECTED["texts"]) > 100 * LOGITS_TOLERANCE * largest


def test_texts_of_a_batch_equal_texts_generated_alone(hf_llm):
    completions = hf_llm.generate([example["prompt"] for example in EXPECTED["texts"]], max_tokens=200)
    assert [completion.text for completion in completions] == [example["text"] for example in EXPECTED["texts"]]


def test_streamed_text_equals_generated_text(hf_llm):
    for example in EXPECTED["texts"]:
        assert "".join(hf_llm.stream(example["prompt"], max_tokens=200)) == example["text"]


def test_a_prompt_read_in_chunks_has_the_same_continuation(hf_llm):
    example = EXPECTED["texts"][1]
    prompt_ids, answer_ids = example["prompt_ids"] + example["ids"][:50], example["ids"][50:]
    default_chunk = hf_llm._engine.scheduler.chunk
    try:
        hf_llm._engine.scheduler.chunk = 7
        assert list(hf_llm.generate(prompt_ids, max_tokens=len(answer_ids)).ids) == answer_ids
    finally:
        hf_llm._engine.scheduler.chunk = default_chunk


def test_the_pytorch_model_generates_the_same_text(path):
    torch = pytest.importorskip("torch")
    from puna import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(path)
    example = EXPECTED["texts"][1]
    ids = model.generate(torch.tensor([example["prompt_ids"]]), max_new_tokens=200, do_sample=False)
    assert ids[0].tolist() == example["prompt_ids"] + example["ids"]


def test_nll_of_held_out_text_equals_that_of_transformers(llm):
    ids = llm.tokenizer.encode(HELD_OUT.read_text())
    losses = np.concatenate([llm.nll(ids[start : start + 256]) for start in range(0, len(ids), 256)])
    assert len(losses) == EXPECTED["nll"]["tokens"]
    assert losses.mean() == pytest.approx(EXPECTED["nll"]["nll"], rel=1e-6)
