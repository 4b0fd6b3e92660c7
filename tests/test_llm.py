"""The class `LLM`, with a tiny model and with SmolLM2."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import puna
from puna import LLM, LlamaConfig
from puna.engine.sampling import Sampler
from puna.errors import BackendError, ChatTemplateError, ModelNotFoundError, PunaError, RequestError
from tests.helpers.torch_files import BACKENDS, needs_torch


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request, tiny_model):
    return LLM(tiny_model, request.param)


def test_generate_equals_greedy_decoding_by_the_model(llm, tiny_model):
    torch = pytest.importorskip("torch")
    completion = llm.generate("the llama", max_tokens=30)
    model = puna.LlamaForCausalLM.from_pretrained(tiny_model)
    ids = model.generate(torch.tensor([completion.prompt_ids]), max_new_tokens=30, do_sample=False)[0].tolist()
    eos = llm.config.eos_token_id
    assert list(completion.prompt_ids + completion.ids) == [i for i in ids if i != eos]
    assert completion.finish_reason == ("stop" if ids[-1] == eos else "length")
    assert completion.text == llm.tokenizer.decode(list(completion.ids), skip_special_tokens=True)
    assert completion.prefill_tokens_per_second > 0
    assert completion.decode_tokens_per_second > 0


def test_a_list_of_prompts_returns_a_list(llm):
    prompts = ["the llama", "grassland", "in the high"]
    completions = llm.generate(prompts, max_tokens=9)
    assert [completion.ids for completion in completions] == [llm.generate(p, max_tokens=9).ids for p in prompts]


def test_a_prompt_may_be_token_ids(llm):
    ids = llm.tokenizer.encode("the llama")
    assert llm.generate(ids, max_tokens=5).ids == llm.generate("the llama", max_tokens=5).ids


def test_the_same_seed_samples_the_same_answer(llm):
    first, second, different = (llm.generate("the", max_tokens=20, temperature=1.5, seed=s).ids for s in (3, 3, 4))
    assert first == second != different


def test_stream_yields_the_text_of_generate(llm):
    text = llm.generate("the llama", max_tokens=40).text
    pieces = list(llm.stream("the llama", max_tokens=40))
    assert "".join(pieces) == text
    assert len(pieces) > 1


def test_chat_renders_the_template(llm):
    messages = [{"role": "user", "content": "the llama"}]
    completion = llm.chat(messages, max_tokens=8)
    rendered = "<|user|>the llama<|end|><|assistant|>"
    assert llm.tokenizer.decode(list(completion.prompt_ids)) == rendered
    assert "".join(llm.stream(messages, max_tokens=8)) == completion.text


def test_a_chat_answer_ends_at_the_end_of_turn_token_of_the_template(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = settings["chat_template"].replace("<|end|>", "<|user|>\n")
    settings |= {"chat_template": template, "eos_token": "<|start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    llm = LLM(tmp_path)
    assert llm._turn_end_ids == {llm.tokenizer.convert_tokens_to_ids("<|user|>")}
    assert llm._stop_ids == {3, llm.tokenizer.convert_tokens_to_ids("<|start|>")}


def test_other_calls_between_two_pieces_do_not_affect_a_stream(llm):
    text = llm.generate("the llama", max_tokens=30).text
    stream = llm.stream("the llama", max_tokens=30)
    first = next(stream)
    answer = llm.generate("grassland", max_tokens=7)
    llm.logits([1, 2, 3])
    assert first + "".join(stream) == text
    assert answer.ids == llm.generate("grassland", max_tokens=7).ids


def settle(llm):
    """Waits until the stepping thread has read all earlier messages, such as those of deleted streams."""
    llm.generate([1], max_tokens=0)


@pytest.fixture
def permits(llm, monkeypatch):
    """A semaphore with five permits. Each forward pass of the model takes one, or waits for it."""
    forward, permits = llm._backend.forward, threading.Semaphore(5)

    def waiting_forward(batch):
        assert permits.acquire(timeout=20)
        return forward(batch)

    monkeypatch.setattr(llm._backend, "forward", waiting_forward)
    return permits


def test_deleted_streams_end_their_requests(llm, permits):
    stream = llm.stream("the llama", max_tokens=100)
    next(stream)
    assert llm._engine.busy  # a forward pass waits
    del stream
    permits.release(10)  # too few for the rest of the answer
    settle(llm)
    assert not llm._engine.busy
    llm.stream("never iterated", max_tokens=100)
    settle(llm)
    assert not llm._engine.busy


def test_threads_share_a_model(llm):
    prompts = ["the llama", "grassland", "in the high", "lives"]
    expected = [llm.generate(prompt, max_tokens=25).text for prompt in prompts]
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(lambda prompt: "".join(llm.stream(prompt, max_tokens=25)), prompts * 3))
    assert texts == expected * 3


@needs_torch
@pytest.mark.parametrize("interrupted", ["backend", "head", "sampler"])
def test_an_interrupt_does_not_affect_other_streams(tiny_model, monkeypatch, interrupted):
    llm = LLM(tiny_model, "torch")
    text = llm.generate("the llama", max_tokens=30).text
    stream = llm.stream("the llama", max_tokens=30)
    first = next(stream)
    owner, name = {
        "backend": (llm._backend, "forward"),
        "head": (llm._backend.model.lm_head, "forward"),
        "sampler": (Sampler, "prepare"),
    }[interrupted]
    original = getattr(owner, name)

    def interrupt(*args, **kwargs):
        if not steps:
            steps.append("sent")
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert is_interrupted.wait(20)
            steps.append("continued")
        return original(*args, **kwargs)

    steps: list[str] = []
    is_interrupted = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate("grassland", max_tokens=200)
    assert steps == ["sent"]  # the main thread does not wait for the end of the step
    is_interrupted.set()
    assert first + "".join(stream) == text
    settle(llm)
    assert steps == ["sent", "continued"]
    assert not llm._engine.busy


def test_numpy_numbers_and_arrays_are_accepted(llm):
    expected = llm.generate([1, 2, 3], max_tokens=5, temperature=1.0, seed=7).ids
    options = {"max_tokens": np.int64(5), "temperature": np.float32(1.0), "seed": np.int64(7)}
    assert llm.generate(np.array([1, 2, 3]), **options).ids == expected
    torch = pytest.importorskip("torch")
    assert llm.generate(torch.tensor([1, 2, 3]), max_tokens=5, temperature=1.0, seed=7).ids == expected


@needs_torch
def test_nan_logits_are_an_error(tiny_model):
    llm = LLM(tiny_model, "torch")
    llm._backend.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(BackendError, match="not finite"):
        llm.generate("the llama", max_tokens=3)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_ends_the_answer(llm, length):
    unstopped = llm.generate("the llama", max_tokens=40)
    start = len(unstopped.text) // 2
    stop = unstopped.text[start : start + length]
    expected = unstopped.text[: unstopped.text.index(stop)]
    completion = llm.generate("the llama", max_tokens=40, stop=["not in it at all", stop])
    assert (completion.text, completion.finish_reason) == (expected, "stop")
    assert "".join(llm.stream("the llama", max_tokens=40, stop=stop)) == expected
    assert len(completion.ids) <= len(unstopped.ids)


def test_logits_and_nll_equal_those_of_the_model(llm, tiny_model):
    torch = pytest.importorskip("torch")
    ids = llm.tokenizer.encode("the llama lives in the high grassland")
    model = puna.LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    logits = llm.logits(ids)
    assert (logits.shape, logits.dtype) == ((len(ids), llm.config.vocab_size), np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    loss = torch.nn.functional.cross_entropy(
        torch.tensor(expected[:-1]).double(), torch.tensor(ids[1:]), reduction="none"
    )
    np.testing.assert_allclose(llm.nll(ids), loss.numpy(), rtol=1e-4)
    assert llm.nll(ids[:1]).shape == (0,)


def test_max_tokens_of_zero_returns_an_empty_answer(llm):
    completion = llm.generate("the llama", max_tokens=0)
    assert (completion.text, completion.ids, completion.finish_reason) == ("", (), "length")
    assert completion.decode_tokens_per_second == 0


def test_an_empty_prompt_becomes_the_bos_token(llm):
    assert llm.generate("", max_tokens=1).prompt_ids == (llm.config.bos_token_id,)


def test_max_tokens_of_none_fills_the_context(llm):
    completion = llm.generate("the llama", max_tokens=None)
    total = len(completion.prompt_ids) + len(completion.ids)
    assert total == 256 if completion.finish_reason == "length" else total < 256


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda llm: llm.generate("x" * 4000), "exceed the model's context of 256 tokens; shorten the prompt"),
        (lambda llm: llm.generate("the", max_tokens=5000), "set max_tokens to"),
        (lambda llm: llm.generate([5, 10**6]), "token id 1000000"),
        (lambda llm: llm.generate("x", temperature=-1), "temperature is -1"),
        (lambda llm: llm.generate("x", stop=""), "stop is ''"),
        (lambda llm: llm.generate("x", stop=[3]), "stop is"),
        (lambda llm: llm.stream("x", max_tokens=10**9), "context of 256"),
        (lambda llm: llm.logits([]), "no tokens"),
        (lambda llm: llm.generate([]), "no tokens"),
        (lambda llm: llm.generate([1.7, 2.2]), "the prompt must be text"),
        (lambda llm: llm.generate(["a", 3]), "the prompt must be text"),
        (lambda llm: llm.generate(None), "the prompt must be text"),
        (lambda llm: llm.generate([[1, 2]]), "the prompt must be text"),
        (lambda llm: llm.generate([{"role": "user"}]), "the prompt must be text"),
        (lambda llm: llm.logits("abc"), "the prompt must be text"),
        (lambda llm: llm.logits([1.7]), "the prompt must be text"),
        (lambda llm: llm.generate("x", prediction=5), "prediction must be text or token ids"),
        (lambda llm: llm.score("x", [5]), "a continuation must be text or token ids"),
    ],
)
def test_impossible_requests_are_errors_before_anything_runs(llm, call, words):
    with pytest.raises(RequestError, match=words):
        call(llm)
    assert not llm._engine.busy


def test_a_chat_without_a_template_is_an_error(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        if file.name != "tokenizer_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ChatTemplateError, match="chat template"):
        LLM(tmp_path).chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("load", "error", "words"),
    [
        (lambda path: LLM(path, "native", dtype="bfloat16"), BackendError, "'native' computes in float32"),
        (lambda path: LLM(path, threads=10**6), BackendError, "threads is 1000000"),
        (lambda path: LLM(path, "tpu"), BackendError, "backend is 'tpu'"),
        (lambda path: LLM(path, threads=0), BackendError, "threads is 0"),
        (lambda path: LLM(path, device="cuda"), BackendError, "device is 'cuda'"),
        pytest.param(lambda path: LLM(path, device="abacus"), BackendError, "device is 'abacus'", marks=needs_torch),
        pytest.param(lambda path: LLM(path, dtype="int3"), PunaError, "int3", marks=needs_torch),
        (lambda path: LLM(path / "absent"), ModelNotFoundError, "no such file or folder"),
    ],
)
def test_models_that_cannot_run_are_errors(tiny_model, load, error, words):
    if words == "device is 'cuda'" and pytest.importorskip("torch").cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(error, match=words):
        load(tiny_model)


@needs_torch
def test_a_model_without_a_head_generates_nothing(llm, tiny_model, tmp_path):
    from puna import LlamaForCausalLM, LlamaModel

    LlamaForCausalLM.from_pretrained(tiny_model).model.save_pretrained(tmp_path)
    assert LlamaModel.from_pretrained(tmp_path).config.hidden_size == 48
    with pytest.raises(RequestError, match="no language-model head"):
        LLM(tmp_path, llm.backend).generate([5, 6])


@needs_torch
def test_bfloat16_runs(tiny_model):
    llm = LLM(tiny_model, dtype="bfloat16", threads=1)
    assert llm.logits([1, 2, 3]).dtype == np.float32
    assert pytest.importorskip("torch").get_num_threads() == 1


@needs_torch
def test_auto_selects_the_native_backend_if_it_supports_the_model(tiny_model, tmp_path):
    assert LLM(tiny_model).backend == "native"
    assert LLM(tiny_model, dtype="bfloat16").backend == "torch"
    puna.LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, hidden_act="gelu")).save_pretrained(tmp_path)
    for file in tiny_model.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match="does not support hidden_act 'gelu'"):
        assert LLM(tmp_path).backend == "torch"
    with pytest.raises(BackendError, match="hidden_act 'gelu'"):
        LLM(tmp_path, "native")


@pytest.mark.slow
def test_smollm2_answers_questions(smollm2):
    llm = LLM()
    assert llm.path == smollm2
    assert "physics" in llm.generate("Gravity is", max_tokens=24).text
    assert "physics" in llm.chat([{"role": "user", "content": "What is gravity?"}], max_tokens=40).text
    pytest.importorskip("torch")
    answer = LLM(backend="torch").chat([{"role": "user", "content": "What is the capital of France?"}], max_tokens=40)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"


def test_logprobs_are_returned_for_each_token(llm):
    completion = llm.generate([1, 2, 3], max_tokens=5, logprobs=2, temperature=0.8, seed=2)
    logits = llm.logits([1, 2, 3, *completion.ids])[2:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert [item.token for item in completion.logprobs] == list(completion.ids)
    for item, row in zip(completion.logprobs, expected, strict=True):
        assert abs(item.logprob - row[item.token]) < 1e-5
        assert [token for token, _ in item.top] == np.argsort(-row)[:2].tolist()
    assert llm.generate([1, 2, 3], max_tokens=5).logprobs is None


def test_options_of_sampling_reach_the_engine(llm):
    free = llm.generate([1, 2, 3], max_tokens=6, temperature=0).ids
    assert llm.generate([1, 2, 3], max_tokens=6, logit_bias={7: 100}).ids == (7,) * 6
    assert set(llm.generate([1, 2, 3], max_tokens=6, allowed_token_ids=[5, 6], temperature=1.0).ids) <= {5, 6}
    assert llm.generate([1, 2, 3], max_tokens=6, stop_token_ids=[free[0]]).ids == ()
    assert len(llm.generate([1, 2, 3], max_tokens=6, stop_token_ids=[free[0]], min_tokens=6).ids) == 6
