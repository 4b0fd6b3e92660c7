"""`LLM` and `AsyncLLM` with adapters: PEFT's logits, batches that mix adapters, prefixes, limits and errors."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest

from puna import LLM, AsyncLLM, LlamaConfig
from puna.errors import BackendError, CheckpointError, ModelNotFoundError, RequestError
from puna.prompt_scores import PromptLogits
from tests.adapters.cases import CASES, IDS, LOGITS, base_config, base_tensors, write_base, write_case
from tests.helpers.adapters import KINDS, write_random_adapter
from tests.helpers.random_weights import random_state
from tests.helpers.tiny_checkpoints import write_folder
from tests.helpers.torch_files import BACKENDS, HAS_TORCH

TEXT_CASES = [case for case in CASES if CASES[case][0] != "classes"]
NOT_NATIVE = {
    "saved": "lm_head", "saved_network": "mlp.down_proj", "ia3_biased": "input_layernorm",
}  # fmt: skip
"""The cases that the native backend refuses, and the tensor that the error names."""

NAMES = [name for name in KINDS if name != "classes"]
PROMPT = [int(number) for number in np.random.default_rng(3).integers(5, 250, 90)]


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Adapters of all kinds for `tiny_model`, by kind."""
    config, folder = LlamaConfig.from_pretrained(tiny_model), tmp_path_factory.mktemp("adapters")
    return {kind: write_random_adapter(folder / kind, config, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def llm(tiny_model, folders):
    with LLM(tiny_model, "native", adapters=folders) as model:
        yield model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", TEXT_CASES)
def test_logits_equal_those_of_peft(tmp_path, case, backend):
    """The expected logits are recorded; tests/adapters/test_torch.py compares them with those that PEFT computes."""
    model, folder = write_base(tmp_path / "base", CASES[case][0]), write_case(tmp_path / "adapter", case)
    arguments = {"backend": backend, "dtype": "float32", "adapters": {"it": folder}}
    if backend == "native" and case in NOT_NATIVE:
        words = f"changes '?[a-z0-9._]*{NOT_NATIVE[case]}.* backend='torch', or merge the adapter .* puna merge"
        with pytest.raises(BackendError, match=words):
            LLM(model, **arguments)
        return
    ids, expected = IDS[0].tolist(), np.load(LOGITS)[case][-IDS.shape[1] :]
    with LLM(model, **arguments) as llm:
        before = llm.logits(ids)
        result = llm.logits(ids, adapter="it")
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()
        assert np.abs(before - expected).max() > 1e-2, "the adapter changes nothing"
        np.testing.assert_allclose(llm.logits(ids), before, atol=1e-6)
        losses = -np.log(np.exp(result.astype(float)) / np.exp(result.astype(float)).sum(1, keepdims=True))
        targets = losses[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(llm.nll(ids, adapter="it"), targets, atol=1e-4)


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("kind", NAMES)
def test_logits_of_a_long_text_equal_those_of_the_pytorch_model(llm, tiny_model, folders, kind):
    import torch

    from puna import LlamaForCausalLM
    from puna.adapters import open_adapter
    from puna.adapters.torch_apply import apply_adapter

    model = LlamaForCausalLM.from_pretrained(tiny_model).eval()
    ids = PROMPT + PROMPT[:60]
    with apply_adapter(model, open_adapter(folders[kind], model.config)), torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -len(ids) :].numpy()
    for _ in range(2):  # the second time, most of the text is cached
        result = np.concatenate(list(llm.iter_logits(ids, adapter=kind)))
        assert np.abs(result - expected).max() <= 2e-5 * np.abs(expected).max()
        np.testing.assert_array_equal(llm.logits(ids, adapter=kind), result)


def test_each_request_of_a_mixed_batch_returns_exactly_what_it_returns_alone(tiny_model, folders):
    kinds = [None, *NAMES]
    prompts = [PROMPT[: 8 * index + 1] for index in range(len(kinds))]
    options = {"max_tokens": 30, "temperature": 0.8, "seed": 5, "logprobs": 3, "ignore_eos": True}
    alone = []
    for prompt, kind in zip(prompts, kinds, strict=True):
        with LLM(tiny_model, "native", max_batch=1, prefix_cache=False, adapters=folders) as llm:
            alone.append(llm.generate(prompt, adapter=kind, **options))
    with LLM(tiny_model, "native", adapters=folders) as llm:
        for _ in range(2):
            answers = [llm.start(prompt, adapter=kind, **options) for prompt, kind in zip(prompts, kinds, strict=True)]
            for (answer, pieces), expected in zip(answers, alone, strict=True):
                assert "".join(pieces) == expected.text
                assert (answer.completion().ids, answer.completion().logprobs) == (expected.ids, expected.logprobs)
    assert len({completion.ids for completion in alone}) == len(kinds)


def test_equal_prompts_share_pages_only_under_the_same_adapter(tiny_model, folders):
    kinds = [None, *NAMES]
    with LLM(tiny_model, "native", adapters=folders) as llm:
        first = [llm.generate(PROMPT, max_tokens=2, adapter=kind) for kind in kinds]
        again = [llm.generate(PROMPT, max_tokens=2, adapter=kind) for kind in kinds]
    assert [completion.cached_tokens for completion in first] == [0] * len(kinds)
    assert [completion.cached_tokens for completion in again] == [len(PROMPT) - 1] * len(kinds)
    assert [completion.ids for completion in again] == [completion.ids for completion in first]


def test_two_adapters_with_equal_contents_share_pages(tiny_model, folders, tmp_path):
    copy = write_random_adapter(tmp_path / "copy", LlamaConfig.from_pretrained(tiny_model), "lora")
    with LLM(tiny_model, "native", adapters={"one": folders["lora"], "two": copy}) as llm:
        assert llm.generate(PROMPT, max_tokens=1, adapter="one").cached_tokens == 0
        assert llm.generate(PROMPT, max_tokens=1, adapter="two").cached_tokens == len(PROMPT) - 1


def test_equal_names_in_two_models_are_different_adapters(tiny_model, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_model)
    paths = [write_random_adapter(tmp_path / str(seed), config, "lora", seed) for seed in range(2)]
    first, second = (LLM(tiny_model, "native", adapters={"it": path}) for path in paths)
    with LLM(tiny_model, "native", adapters={"a": paths[0], "b": paths[1]}) as both, first, second:
        for llm, name in [(first, "a"), (second, "b"), (first, "a")]:
            np.testing.assert_array_equal(llm.logits(PROMPT, adapter="it"), both.logits(PROMPT, adapter=name))
        assert not np.array_equal(first.logits(PROMPT, adapter="it"), second.logits(PROMPT, adapter="it"))


@pytest.mark.parametrize("kind", ["lora", "tokens", "long_prompt", "prefix"])
def test_every_method_uses_the_adapter(llm, kind):
    expected = llm.generate(PROMPT, max_tokens=20, adapter=kind)
    assert expected.prompt_ids == tuple(PROMPT)
    assert "".join(llm.stream(PROMPT, max_tokens=20, adapter=kind)) == expected.text
    pieces = llm.stream_batch([PROMPT, PROMPT], max_tokens=20, adapter=kind)
    assert "".join(piece for index, piece in pieces if index == 1) == expected.text
    losses = llm.nll(PROMPT, adapter=kind)
    np.testing.assert_allclose(llm.score(PROMPT[:50], [PROMPT[50:]], adapter=kind), -losses[49:].sum(), rtol=1e-12)
    message = [{"role": "user", "content": "Hello"}]
    assert llm.chat(message, max_tokens=9, adapter=kind).text == "".join(
        llm.stream(message, max_tokens=9, adapter=kind)
    )
    several = llm.generate(PROMPT, max_tokens=5, n=2, temperature=1.0, seed=1, prompt_logprobs=0, adapter=kind)
    assert len(several.prompt_logprobs) == len(PROMPT)
    np.testing.assert_allclose([token.logprob for token in several.prompt_logprobs[1:]], -losses, atol=1e-4)


def test_asyncio_uses_the_adapters(tiny_model, folders, llm):
    async def run():
        async with AsyncLLM(tiny_model, "native", adapters=folders) as model:
            answers = await asyncio.gather(*(model.generate(PROMPT, max_tokens=9, adapter=kind) for kind in NAMES))
            streamed = [piece async for piece in model.stream(PROMPT, max_tokens=9, adapter="prefix")]
            return answers, "".join(streamed), await model.score(PROMPT[:9], [PROMPT[9:12]], adapter="lora"), (
                await model.nll(PROMPT, adapter="dora")), await model.logits(PROMPT, adapter="prompt"), (
                [part async for part in model.iter_logits(PROMPT, adapter="prompt")])  # fmt: skip

    answers, text, score, nll, logits, parts = asyncio.run(run())
    expected = [llm.generate(PROMPT, max_tokens=9, adapter=kind) for kind in NAMES]
    assert [answer.ids for answer in answers] == [answer.ids for answer in expected]
    assert text == expected[NAMES.index("prefix")].text
    assert score == llm.score(PROMPT[:9], [PROMPT[9:12]], adapter="lora")
    np.testing.assert_array_equal(nll, llm.nll(PROMPT, adapter="dora"))
    np.testing.assert_array_equal(logits, llm.logits(PROMPT, adapter="prompt"))
    np.testing.assert_array_equal(np.concatenate(parts), logits)


def test_virtual_tokens_count_in_the_context(llm):
    context = llm.config.context_length
    for kind, count in [(None, 0), ("lora", 0), ("prompt", 11), ("long_prefix", 90)]:
        assert llm.longest_text(kind) == context - count
        completion = llm.generate(PROMPT, max_tokens=None, ignore_eos=True, adapter=kind)
        assert (len(completion.ids), completion.finish_reason) == (context - count - len(PROMPT), "length")
        assert len(llm.logits([5] * (context - count), adapter=kind)) == context - count
    with pytest.raises(
        RequestError, match=r"virtual tokens \(90\) and max_tokens \(77\) exceed .* max_tokens to 76 or"
    ):
        llm.generate(PROMPT, max_tokens=77, adapter="long_prefix")
    with pytest.raises(RequestError, match=r"virtual tokens \(11\) exceed the model's context of 256 tokens; shorten"):
        llm.logits([5] * 246, adapter="prompt")


def test_the_error_for_an_unknown_name_lists_the_adapters(llm, tiny_model):
    for call in (
        lambda: llm.generate("Hi", adapter="lorra"), lambda: llm.chat("Hi", adapter="lorra"),
        lambda: llm.stream("Hi", adapter="lorra"), lambda: llm.stream_batch(["Hi"], adapter="lorra"),
        lambda: llm.nll([5, 6], adapter="lorra"), lambda: llm.logits([5], adapter="lorra"),
        lambda: next(llm.iter_logits([5], adapter="lorra")), lambda: llm.score("a", ["b"], adapter="lorra"),
    ):  # fmt: skip
        with pytest.raises(
            RequestError, match=r"adapter is 'lorra'; the loaded adapters are .*'dora', .*mean 'lora'\?"
        ):
            call()
    with pytest.raises(RequestError, match=r"adapter is 7; the loaded adapters are .*'prompt', 'tokens'$"):
        llm.generate("Hi", adapter=7)
    with (
        LLM(tiny_model, "native") as plain,
        pytest.raises(RequestError, match=r"no adapter is loaded; load .*adapters="),
    ):
        plain.generate("Hi", adapter="lora")


def test_an_adapter_that_classifies_does_not_generate(llm):
    with pytest.raises(RequestError, match="'classes' was trained to classify texts; use classify"):
        llm.generate("Hi", adapter="classes")


@pytest.mark.parametrize(
    ("adapters", "error", "words"),
    [
        (["folder"], RequestError, r"adapters is \['folder'\]; it must be a dictionary of names and paths"),
        ({"": "folder"}, RequestError, "has the name ''; it must be a text of at least one character"),
        ({3: "folder"}, RequestError, "has the name 3; it must be a text"),
        ({"a": 3}, ModelNotFoundError, "the path of an adapter is 3"),
        ({"a": "no/such/folder"}, ModelNotFoundError, "no/such/folder: no such file or folder"),
    ],
)
def test_malformed_adapters_are_errors(tiny_model, adapters, error, words):
    with pytest.raises(error, match=words):
        LLM(tiny_model, "native", adapters=adapters)


def test_adapters_of_another_model_are_errors(tiny_model, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_model)
    sizes = {"lora": "hidden_size", "ia3": "intermediate_size", "prompt": "hidden_size", "prefix": "num_hidden_layers"}
    for kind, name in sizes.items():
        other = LlamaConfig.from_dict(config.to_dict(), **{name: 2 * getattr(config, name)})
        folder = write_random_adapter(tmp_path / kind, other, kind)
        with pytest.raises(CheckpointError, match=r"has the shape \(.*require \(.*Use the adapter's base model"):
            LLM(tiny_model, "native", adapters={"it": folder})


def test_a_prefix_for_frequencies_that_depend_on_the_length_is_an_error(tmp_path):
    config = base_config("plain")
    model = write_base(tmp_path / "base", "plain")
    text = (model / "config.json").read_text()
    assert '"rope_scaling"' not in text or '"rope_scaling": null' in text
    scaled = LlamaConfig.from_dict(config.to_dict(), rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    scaled.save_pretrained(model)
    with pytest.raises(RequestError, match="rope type 'dynamic', whose keys depend on the length"):
        LLM(model, "native", adapters={"it": write_case(tmp_path / "adapter", "prefix")})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["classes", "prompt_classes"])
def test_labels_equal_those_of_peft(tmp_path, case, backend):
    folder, expected = write_case(tmp_path / "adapter", case), np.load(LOGITS)[case]
    arguments = {"backend": backend, "dtype": "float32", "adapters": {"it": folder}}
    with LLM(write_base(tmp_path / "classifier", "classes"), **arguments) as llm:
        (result,) = llm.classify(IDS[0].tolist(), adapter="it")
        np.testing.assert_allclose(result.logits, expected, atol=1e-5 * np.abs(expected).max())
        assert llm.classify(IDS[0].tolist())[0].logits != pytest.approx(result.logits, abs=1e-2)
    # An adapter that classifies contains the classification head, so the base model may be a language model.
    tensors = base_tensors("classes")
    tensors["lm_head.weight"] = tensors.pop("score.weight")[np.zeros(48, int)]
    language_model = write_folder(tmp_path / "language", base_config("plain"), tensors)
    with LLM(language_model, **arguments) as llm:
        (result,) = llm.classify(IDS[0].tolist(), adapter="it")
        np.testing.assert_allclose(result.logits, expected, atol=1e-5 * np.abs(expected).max())
        with pytest.raises(RequestError, match="has no classification head"):
            llm.classify(IDS[0].tolist())


def test_embeddings_use_the_adapter(llm, tiny_model, folders):
    texts = [PROMPT, PROMPT[:30]]
    for kind in ("lora", "long_prompt", "prefix", "classes"):
        for pooling in ("last", "mean"):
            result = llm.embed(texts, pooling=pooling, adapter=kind)
            assert np.abs(result - llm.embed(texts, pooling=pooling)).max() > 1e-2
            np.testing.assert_array_equal(result[1:], llm.embed(PROMPT[:30], pooling=pooling, adapter=kind))
    for method in (llm.embed, llm.classify):
        with pytest.raises(RequestError, match="adapter is 'x'"):
            method("Hi", adapter="x")

    async def run():
        async with AsyncLLM(tiny_model, "native", adapters=folders) as model:
            return await model.embed(texts, adapter="prefix"), await model.classify(texts, adapter="classes")

    embeddings, labels = asyncio.run(run())
    np.testing.assert_array_equal(embeddings, llm.embed(texts, adapter="prefix"))
    assert labels == llm.classify(texts, adapter="classes")


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_states_equal_those_of_the_pytorch_model(llm, tiny_model, folders):
    import torch

    from puna import LlamaModel
    from puna.adapters import open_adapter
    from puna.adapters.torch_apply import apply_adapter

    model = LlamaModel.from_pretrained(tiny_model).eval()
    for kind in ("lora", "long_prompt", "prefix"):
        with apply_adapter(model, open_adapter(folders[kind], model.config)), torch.no_grad():
            states = model(torch.tensor([PROMPT])).last_hidden_state[0, -len(PROMPT) :].numpy()
        np.testing.assert_allclose(llm.embed(PROMPT, adapter=kind)[0], states[-1], atol=1e-4)
        np.testing.assert_allclose(llm.embed(PROMPT, pooling="mean", adapter=kind)[0], states.mean(0), atol=1e-4)


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_replaced_tensors_change_only_the_requests_of_their_adapter(tmp_path):
    cases = [None, "saved", "saved_network", "lora", "copy", "prefix"]
    model = write_base(tmp_path / "base", "plain")
    paths = {case: write_case(tmp_path / case, case) for case in cases if case not in (None, "copy")}
    paths["copy"] = write_case(tmp_path / "copy", "saved")
    ids = tuple(IDS[0].tolist())
    with LLM(model, "torch", adapters=paths, prefix_cache=False) as llm:
        alone = [llm.logits(ids, adapter=case) for case in cases]
        results = [PromptLogits(ids, adapter=llm._adapters.loaded(case)) for case in cases]
        llm._runner.submit(results).wait()
    for index, (result, expected) in enumerate(zip(results, alone, strict=True)):
        np.testing.assert_allclose(result.rows, expected, atol=1e-5)
        others = [np.abs(other - expected).max() for other in alone[index + 1 :]]
        assert sum(difference < 1e-2 for difference in others) == (
            cases[index] == "saved"
        )  # "copy" is a copy of "saved"


def test_values_that_cannot_be_quantised_are_reported_with_the_path(tiny_model, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_model)
    config.hidden_size, config.head_dim = 64, 16
    model = write_folder(shutil.copytree(tiny_model, tmp_path / "model"), config, random_state(config, seed=12))
    folder = write_random_adapter(tmp_path / "large", config, "lora", scale=1e30)
    with pytest.raises(BackendError, match=f"^{folder}: the native runtime rejects the adapter"):
        LLM(model, "native", quantize="q8_0", adapters={"a": folder})
