"""`LLM` and `Completion` as Python objects: closing, representations, signatures, wrong arguments."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puna import LLM, AsyncLLM, Completion, LlamaConfig, convert
from puna.answer import Answer
from puna.checkpoint import open_checkpoint
from puna.errors import ArgumentError, BackendError, ModelNotFoundError, PunaError, RequestError
from puna.options import Options
from puna.prompts import read_ids
from tests.helpers.configurations import config_of
from tests.helpers.meta_models import FAMILIES, hf_tensors, write_meta
from tests.helpers.native import pack_state
from tests.helpers.random_weights import random_state
from tests.helpers.torch_files import BACKENDS, needs_torch

backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
def test_an_answer_whose_stream_was_closed_is_not_complete(tiny_model, backend):
    with LLM(tiny_model, backend) as llm:
        answer, stream = llm.start("the llama", max_tokens=200, ignore_eos=True)
        next(stream)
        stream.close()
        with pytest.raises(RequestError, match="the answer is not complete"):
            answer.completion()


@backends
def test_a_closed_model_answers_with_an_error(tiny_model, backend):
    with LLM(tiny_model, backend) as llm:
        stream = llm.stream("the llama", max_tokens=50)
        next(stream)
    assert llm.config.vocab_size == len(llm.tokenizer)
    llm.close()
    with pytest.raises(BackendError, match="the model is closed"):
        list(stream)
    for call in (llm.generate, llm.chat, llm.stream, lambda text: llm.nll([1, 2]), lambda text: llm.logits([1])):
        with pytest.raises(RequestError, match="this LLM is closed; load the model again"):
            call("the llama")
    with pytest.raises(RequestError, match="closed"), llm:
        pass


@pytest.mark.parametrize("kind", [LLM, AsyncLLM])
@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_model_can_neither_be_pickled_nor_copied(tiny_model, kind, duplicate):
    llm = kind(tiny_model, "native")
    with pytest.raises(
        ArgumentError, match=r"LLM cannot be pickled or copied, because .*; load .* in the other process"
    ):
        duplicate(llm)
    llm.close()


@needs_torch
def test_closing_frees_the_torch_model(tiny_model):
    llm = LLM(tiny_model, "torch")
    llm.generate("the llama", max_tokens=2)
    model = weakref.ref(llm._backend.model)
    llm.close()
    gc.collect()
    assert model() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_closing_frees_the_native_memory():
    from puna.native import NativeBackend

    def size() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    config = config_of(hidden_size=1024, intermediate_size=4096)
    state = random_state(config)
    before = size()
    backend = NativeBackend(config, pack_state("f32", state), 1)
    weights = backend.weight_bytes
    assert weights > 1e8 and size() - before > 0.9 * weights
    backend.close()
    backend.close()
    assert size() - before < 0.5 * weights
    with pytest.raises(BackendError, match="the model is closed; load it again"):
        backend.profile()


@backends
def test_representations_are_short(tiny_model, backend):
    llm = LLM(tiny_model, backend)
    assert repr(llm) == f"LLM({str(tiny_model)!r}, backend={backend!r}, context_length=256)"
    answer = llm.generate("the llama", max_tokens=5)
    assert str(answer) == answer.text and f"{answer}" == answer.text
    assert repr(answer).startswith(f"Completion({answer.text!r}, finish_reason='length', ")
    assert f"{len(answer.prompt_ids)} prompt tokens, 5 answer tokens" in repr(answer)
    assert repr(Completion("", (), "stop", (1,), 0.0, 0.0)).endswith("0.0 tokens/s)")
    llm.close()
    assert repr(llm) == f"LLM({str(tiny_model)!r}, closed)"


@backends
def test_a_completion_reports_the_reused_tokens_of_its_prompt(tiny_model, backend):
    prompt = [5 + n % 40 for n in range(150)]
    with LLM(tiny_model, backend) as llm:
        first, again = llm.generate(prompt, max_tokens=5), llm.generate([*prompt, 9], max_tokens=5)
        several = llm.generate(["the llama"] * 2, max_tokens=2)
    with LLM(tiny_model, backend, prefix_cache=False) as llm:
        alone = [llm.generate(prompt, max_tokens=5), llm.generate([*prompt, 9], max_tokens=5)]
    assert [answer.cached_tokens for answer in (first, again, *alone, *several)] == [0, 150, 0, 0, 0, 0]
    assert [first.ids, again.ids] == [answer.ids for answer in alone]
    assert Completion("", (), "stop", (1,) * 100, 2.0, 0.0, cached_tokens=60).prefill_tokens_per_second == 20.0
    with pytest.raises(RequestError, match="prefix_cache is 1; it must be True or False"):
        LLM(tiny_model, prefix_cache=1)


@backends
@pytest.mark.parametrize("speculate", [None, True, False])
def test_only_native_models_speculate_by_default(tiny_model, backend, speculate):
    with LLM(tiny_model, backend) as llm:
        answer, stream = llm.start("the llama", max_tokens=3, speculate=speculate)
        stream.close()
        assert answer.request.speculate == (backend == "native" if speculate is None else speculate)


@pytest.mark.parametrize("method", ["generate", "chat", "stream", "stream_batch", "start"])
def test_options_are_in_the_signature(method):
    parameters = inspect.signature(getattr(LLM, method)).parameters
    assert set(parameters) >= set(Options.__annotations__)
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values())
    defaults = {"max_tokens": "auto", "n": 1, "salt": "", "priority": 0}
    defaults |= {"include_stop_str_in_output": False, "skip_special_tokens": True, "explain_prefix": False}
    for name in Options.__annotations__:
        assert parameters[name].default == defaults.get(name)
        assert f"{name}" in (LLM.generate.__doc__ or "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": "all"}, "max_tokens is 'all'"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        (
            {"max_tokens": 10**30},
            rf"max_tokens \({10**30}\) exceed the model's context of \d+ tokens; set max_tokens to \d+ or",
        ),
        (
            {"max_tokens": 10**5000},
            r"max_tokens \(a whole number of more than 80 digits\) exceed the model's context of \d+",
        ),
        (
            {"min_tokens": 10**5000},
            "min_tokens is a whole number of more than 80 digits, but max_tokens is [0-9]+; raise",
        ),
        (
            {"priority": 2**63},
            "priority is 9223372036854775808; it must be a whole number from -9223372036854775807 to 92",
        ),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a finite number, 0 or more"),
        ({"temperature": 10**400}, "temperature is a whole number of .*; it must be a finite number"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": "3"}, r"top_k is '3'; it must be a whole number, 0 or more \(0 keeps all"),
        ({"top_k": -(10**5000)}, "top_k is a whole number of"),
        ({"top_p": 2}, "top_p is 2; it must be a number from 0 to 1"),
        ({"min_p": [1]}, r"min_p is \[1\]"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be a number from"),
        ({"seed": -1}, "seed is -1; it must be a whole number, 0 or more"),
        ({"stop": 3}, "stop is 3; it must be None, a string or several strings"),
        ({"stop": b"x"}, "stop is b'x'"),
        ({"stop": {"a": 1}}, "stop is {'a': 1}"),
        ({"speculate": 1}, "speculate is 1; it must be True or False"),
    ],
)
def test_wrong_options_are_errors_with_value_and_limit(tiny_model, options, words):
    with pytest.raises(RequestError, match=words):
        LLM(tiny_model).generate("the llama", **options)


def test_stop_of_none_means_no_stop_strings(tiny_model):
    llm = LLM(tiny_model)
    assert llm.generate("the llama", max_tokens=9, stop=None).ids == llm.generate("the llama", max_tokens=9).ids


def test_ids_may_be_an_iterator_but_not_a_set():
    assert read_ids(iter([1, 2])) == (1, 2)
    assert read_ids(np.array([3, 4])) == (3, 4)
    for value in ({1, 2}, b"ab", 3, [True], [10**400, "x"]):
        with pytest.raises(RequestError, match="the prompt must be text"):
            read_ids(value)
    with pytest.raises(RequestError, match="messages are for chat or stream"):
        read_ids([{"role": "user"}])


def test_a_token_id_of_any_size_is_an_error(tiny_model):
    with pytest.raises(RequestError, match="token id a whole number of more than 80 digits"):
        LLM(tiny_model).generate([10**5000])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": 3}, "path is 3; it must be a text"),
        ({"path": b"x"}, "path is b'x'"),
        ({"backend": None}, "backend is None"),
        ({"threads": "2"}, "threads is '2'"),
        ({"threads": 10**5000}, "threads is a whole number"),
        ({"max_batch": 0}, "max_batch is 0; it must be a whole number from 1 to 1024"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0; it must be a whole number from 1 to 64"),
        ({"tensor_parallel": "2"}, "tensor_parallel is '2'; it must be a whole number"),
        ({"quantize": 3}, "quantize is 3"),
        ({"quantize": "q8_0", "dtype": "float32"}, "quantize is 'q8_0', but float32 is requested"),
        pytest.param({"device": 3.5}, "device is 3.5", marks=needs_torch),
        pytest.param({"dtype": ""}, "dtype is ''", marks=needs_torch),
    ],
)
def test_wrong_arguments_of_the_model_are_errors(tiny_model, arguments, words):
    with pytest.raises(PunaError, match=words):
        LLM(**{"path": tiny_model, **arguments})
    assert issubclass(ModelNotFoundError, PunaError)


@backends
@pytest.mark.parametrize(("version", "context"), [("1", 2048), ("code", 16384)])
def test_the_release_of_an_open_checkpoint_is_kept(tmp_path, backend, version, context):
    family = next(family for family in FAMILIES if family.name == "llama2-7b")
    folder = write_meta(tmp_path / "meta", family, hf_tensors(family))
    assert open_checkpoint(folder).config.context_length == 4096
    llm = LLM(open_checkpoint(folder, version=version), backend)
    assert llm.config.context_length == llm._backend.config.context_length == context
    with pytest.raises(RequestError, match=f"the model's context of {context}"):
        llm.logits([1] * (context + 1))


@backends
def test_the_edited_configuration_of_an_open_checkpoint_is_kept(tiny_model, backend):
    checkpoint = open_checkpoint(tiny_model)
    edited = replace(checkpoint, config=LlamaConfig.from_dict({**checkpoint.config.to_dict(), "rms_norm_eps": 0.5}))
    logits, expected = LLM(edited, backend).logits(range(40)), LLM(edited, "native").logits(range(40))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.abs(logits - LLM(checkpoint, backend).logits(range(40))).max() > 0.1


def test_dtype_float32_rounds_nothing_on_the_native_backend(tmp_path):
    torch = pytest.importorskip("torch")
    from puna import LlamaForCausalLM

    model = LlamaForCausalLM(config_of(max_position_embeddings=256)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    ids = list(np.random.default_rng(0).integers(0, 67, 200))
    with torch.no_grad():
        expected = model.float()(torch.tensor([ids])).logits[0].numpy()
    for arguments in ({"backend": "native"}, {}):
        logits = LLM(tmp_path, dtype="float32", **arguments).logits(ids)
        assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()
    assert np.abs(LLM(tmp_path).logits(ids) - expected).max() > 2e-4 * np.abs(expected).max()


def test_later_answers_are_not_affected_by_a_memory_error(tiny_model, monkeypatch):
    llm = LLM(tiny_model)
    expected = llm.generate("the llama", max_tokens=9).ids

    def refuse(*arguments: object) -> None:
        raise MemoryError("Unable to allocate 3.00 GiB for an array")

    with monkeypatch.context() as patch:
        patch.setattr(type(llm._backend), "forward", refuse)
        with pytest.raises(BackendError, match=r"memory is exhausted \(Unable to allocate 3.00 GiB.*ulimit -v"):
            llm.generate("the llama", max_tokens=9)
    assert isinstance(llm.start("the llama", max_tokens=9)[0], Answer)
    assert llm.generate("the llama", max_tokens=9).ids == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("tokens", [1000, pytest.param(8000, marks=pytest.mark.soak)])
def test_the_default_model_runs_in_two_gigabytes_of_address_space(smollm2, tokens):
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2_000_000 * 1024, resource.RLIM_INFINITY))\n"
        "from puna import LLM\n"
        "llm = LLM()\n"
        "print(llm._backend.pages * 64, llm.generate('Gravity is', max_tokens=12).text)\n"
        "print(len(llm.generate([100] * int(sys.argv[1]), max_tokens=2, stop=None).ids) <= 2)\n"
    )
    command = [sys.executable, "-c", script, str(tokens)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    capacity, _, text = run.stdout.splitlines()[0].partition(" ")
    assert 8192 <= int(capacity) < 16 * 8192, run.stderr
    assert "physics" in text and run.stdout.endswith("True\n"), run.stderr


@pytest.mark.parametrize("value", [10**5000, 5, b"x"], ids=["huge", "5", "bytes"])
def test_arguments_of_a_wrong_type_raise_errors_of_puna(tiny_model, tmp_path, value):
    llm = LLM(tiny_model)
    calls = [
        lambda: LLM(tiny_model, dtype=value),
        lambda: LLM(tiny_model, device=value),
        lambda: LLM(tiny_model, quantize=value),
        lambda: llm.generate("the", stop=value, max_tokens=1),
        lambda: LlamaConfig.from_pretrained("owner/name", revision=value),
        lambda: llm.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=value),
        lambda: llm.tokenizer.apply_chat_template(value),
        lambda: open_checkpoint(value),
        lambda: convert(value, tmp_path / "x"),
        lambda: convert(tiny_model, value),
        lambda: convert(tiny_model, tmp_path / "x", shards=str(tiny_model)),
    ]
    for call in calls:
        with pytest.raises(PunaError):
            call()


def test_only_generate_accepts_a_list_of_texts(tiny_model):
    with pytest.raises(RequestError, match=r"text or token ids.*only generate accepts a list of texts"):
        LLM(tiny_model).stream(["a", "b"])


def test_an_empty_path_and_unknown_dtypes_are_refused(tiny_model):
    with pytest.raises(ModelNotFoundError, match="path is empty"):
        LLM("")
    for dtype in ("auto", "float"):
        with pytest.raises(BackendError, match=f"dtype is '{dtype}'; it must be one of float32, [a-z0-9, ]*, or None"):
            LLM(tiny_model, dtype=dtype)
