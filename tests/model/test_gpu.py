"""Model classes, `LLM` and `AsyncLLM` on a GPU. Further tests with a parameter for the device also run there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from puna import LLM, AsyncLLM, convert
from puna.model import LlamaForCausalLM
from tests.golden.files import LAYOUTS
from tests.helpers.adapters import write_random_adapter

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # the versions of libraries where there is a GPU are not those of CI
    pytest.mark.slow,
]
GOLDEN = LAYOUTS["hf"]


@pytest.mark.parametrize("device_map", ["auto", "cuda", "cuda:0", 0, {"": 0}, "balanced", "sequential"], ids=str)
def test_from_pretrained_places_the_model(device_map: object) -> None:
    model = LlamaForCausalLM.from_pretrained(GOLDEN, device_map=device_map)
    assert {part.device.type for part in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert [str(device) for device in model.hf_device_map.values()]
    ids = torch.tensor([[1, 30, 31, 32]])
    expected = LlamaForCausalLM.from_pretrained(GOLDEN)(ids).logits
    assert torch.allclose(model(ids.cuda()).logits.cpu(), expected, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}, {"use_cache": False},
     {"num_return_sequences": 2, "num_beams": 2, "length_penalty": 0.5}, {"output_scores": True}],
    ids=str,
)  # fmt: skip
def test_generate_is_equal_to_transformers(options: dict) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaForCausalLM.from_pretrained(GOLDEN, dtype=torch.float32).cuda()
    model = LlamaForCausalLM.from_pretrained(GOLDEN, device_map="cuda")
    ids = torch.tensor([[0, 0, 1, 30, 31], [1, 40, 41, 42, 43]]).cuda()
    mask = (ids > 0).long()
    arguments = {"attention_mask": mask, "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **options}
    results = [part.generate(ids, **arguments) for part in (model, reference)]
    if "output_scores" in options:
        results = [result if isinstance(result, torch.Tensor) else result.sequences for result in results]
    assert results[0].is_cuda
    assert torch.equal(*results)


def test_generate_draws_tokens() -> None:
    model = LlamaForCausalLM.from_pretrained(GOLDEN, device_map="cuda", dtype=torch.bfloat16)
    for options in ({"top_p": 0.9}, {"top_k": 5, "temperature": 0.7}, {"min_p": 0.1}, {"typical_p": 0.8}):
        out = model.generate(torch.tensor([[1, 30]]).cuda(), do_sample=True, max_new_tokens=8, **options)
        assert out.is_cuda and 2 < out.shape[1] <= 10


@pytest.mark.parametrize("quantize", ["Q4_0", "Q4_K_M", "Q6_K", "Q8_0"])
def test_packed_matrices_stay_packed(tmp_path: Path, quantize: str) -> None:
    path = tmp_path / "small.gguf"
    convert(GOLDEN, path, quantize=quantize)
    packed = LlamaForCausalLM.from_pretrained(path, keep_quantized=True, device_map="cuda")
    expected = LlamaForCausalLM.from_pretrained(path)
    ids = torch.tensor([[1, 30, 31, 32]])
    logits = packed(ids.cuda()).logits
    assert torch.allclose(logits.cpu(), expected(ids).logits, atol=1e-3)
    embeddings = packed.model.embed_tokens(ids.cuda()).detach().requires_grad_()
    packed(inputs_embeds=embeddings).logits.square().sum().backward()
    reference = expected.model.embed_tokens(ids).detach().requires_grad_()
    expected(inputs_embeds=reference).logits.square().sum().backward()
    assert torch.allclose(embeddings.grad.cpu(), reference.grad, rtol=1e-2, atol=1e-2)
    with LLM(path, keep_quantized=True, device="cuda", dtype="float32") as llm, LLM(path, dtype="float32") as floats:
        assert llm.generate([1, 30, 31], max_tokens=8).ids == floats.generate([1, 30, 31], max_tokens=8).ids


def test_answers_are_equal_to_those_of_the_native_backend(tmp_path: Path) -> None:
    with LLM(GOLDEN, "native", dtype="float32") as native:
        path = write_random_adapter(tmp_path / "lora", native.config, "lora")
    adapters = {"lora": path}
    with (
        LLM(GOLDEN, "native", dtype="float32", adapters=adapters) as native,
        LLM(GOLDEN, "torch", device="cuda", dtype="float32", adapters=adapters) as llm,
    ):
        prompts = ["Once upon a time", "The", "A small dog was", "She", "One day"]
        ids = [1, 30, 40, 50]
        for adapter in (None, "lora"):
            for options in ({}, {"logprobs": 2}, {"repetition_penalty": 1.2}):
                results = [
                    [answer.ids for answer in model.generate(prompts, max_tokens=12, adapter=adapter, **options)]
                    for model in (llm, native)
                ]
                assert results[0] == results[1]
            assert np.allclose(llm.logits(ids, adapter=adapter), native.logits(ids, adapter=adapter), atol=1e-3)
        assert np.allclose(llm.embed(ids), native.embed(ids), atol=1e-3)
        assert len(llm.generate(prompts[0], max_tokens=8, temperature=1.0, seed=1).ids) > 0
        assert "".join(llm.stream(prompts[0], max_tokens=8)) == native.generate(prompts[0], max_tokens=8).text


def test_many_tasks_share_a_model() -> None:
    async def run() -> None:
        async with AsyncLLM(GOLDEN, "torch", device="cuda", dtype="float32", max_batch=32) as llm:
            prompts = [[1, 30 + n % 20, 40 + n // 20] for n in range(60)]
            answers = await asyncio.gather(*(llm.generate(prompt, max_tokens=16) for prompt in prompts))
            pieces = [piece async for piece in llm.stream(prompts[0], max_tokens=16)]
            assert "".join(pieces) == answers[0].text
        with LLM(GOLDEN, "native", dtype="float32") as native:
            assert [answer.ids for answer in answers] == [
                native.generate(prompt, max_tokens=16).ids for prompt in prompts
            ]

    asyncio.run(run())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_of_peft_trains(checkpointing: bool) -> None:
    peft = pytest.importorskip("peft")
    model = LlamaForCausalLM.from_pretrained(GOLDEN, device_map="cuda", dtype=torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    trained = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    trained.train()
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    ids = torch.randint(3, 60, (4, 32), generator=torch.Generator().manual_seed(0)).cuda()
    losses = []
    for _ in range(5):
        loss = trained(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_model_on_a_gpu_is_saved(tmp_path: Path) -> None:
    from puna.model import TorchBackend

    model = LlamaForCausalLM.from_pretrained(GOLDEN, device_map="cuda")
    backend = TorchBackend(model, 1)  # which joins matrices
    model.save_pretrained(tmp_path)
    backend.close()
    saved = LlamaForCausalLM.from_pretrained(tmp_path)
    expected = LlamaForCausalLM.from_pretrained(GOLDEN).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in saved.state_dict().items())
