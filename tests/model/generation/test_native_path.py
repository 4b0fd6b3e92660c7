"""`generate()` on the native runtime, compared with the PyTorch path of the same model and with float64."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from puna.model import LlamaForCausalLM
from puna.model.generation.loop import TorchForward
from puna.model.generation.native import choice, runtime
from puna.model.generation.native.choice import choose_forward
from puna.model.generation.native.runtime import NativeForward
from puna.model.generation.prompt import Prompt
from tests.helpers.configurations import CONFIGURATIONS, config_of
from tests.helpers.native import relative_rms
from tests.helpers.native_generation import IDS, both_paths, new_model
from tests.helpers.reference_models import distance, pair, ragged

NATIVE = [name for name in CONFIGURATIONS if name != "linear_gelu"]


def forward_of(model: LlamaForCausalLM, mask: Tensor, embeds: Tensor | None = None) -> NativeForward:
    prompt = Prompt(torch.zeros(len(mask), 0).long(), embeds, mask, None)
    with torch.no_grad():
        forward, path = choose_forward(model, model.generation_config, prompt, 64)
    assert path == "native"
    assert isinstance(forward, NativeForward)
    return forward


@pytest.mark.parametrize("name", NATIVE)
def test_logits_equal_float64_for_ragged_prompts(name: str) -> None:
    model, _ = pair(config_of(**CONFIGURATIONS[name]))
    ids, mask, positions = ragged(model.config, (9, 30, 14), "left")
    forward = forward_of(model, mask)
    first = forward.forward(ids[:, :25], mask[:, :25], None, keep=0)
    second = forward.forward(ids, mask, first.past_key_values, keep=5)
    with torch.no_grad():
        expected = model.double()(ids, attention_mask=mask, position_ids=positions).logits
    logits = torch.cat((first.logits, second.logits), dim=1)
    assert distance(logits, expected, mask.bool()) < 4e-6
    assert (logits[~mask.bool()] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["all_biases_tied", "yarn_narrow_heads", "gqa4"])
def test_logits_of_half_precision_are_closer_to_float64_than_those_of_pytorch(name: str, dtype: torch.dtype) -> None:
    model = pair(config_of(**CONFIGURATIONS[name], initializer_range=0.05))[0].to(dtype)
    ids = torch.randint(3, 67, (2, 40))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        rounded = model(ids).logits.double()
        logits = forward_of(model, mask).forward(ids, mask, None, keep=0).logits.double()
        expected = model.double()(ids).logits
    error, limit = (relative_rms(result.numpy(), expected.numpy()) for result in (logits, rounded))
    assert error < limit


@pytest.mark.parametrize("settings", [
    {"attention_mask": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 9, [0, 1, 1, 1, 0, 0, 1, 1, 1]])},
    {"do_sample": True, "top_k": 20, "temperature": 1.3, "num_return_sequences": 2},
    {"repetition_penalty": 1.4, "min_new_tokens": 5, "eos_token_id": list(range(30))},
    {"max_new_tokens": 1},
    {"logits_processor": [lambda ids, scores: scores - 5.0 * (torch.arange(67) % 2)]},
])  # fmt: skip
def test_tokens_equal_those_of_pytorch(settings: dict[str, Any]) -> None:
    both_paths(new_model(), IDS, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"num_beams": 4, "do_sample": True, "temperature": 1.2},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
        {"num_beams": 3, "force_words_ids": [[11, 12]]},
        {"guidance_scale": 1.5},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [5, 6]},
    ],
)
@pytest.mark.filterwarnings("ignore:.*")
def test_strategies_give_the_tokens_of_pytorch(settings: dict[str, Any]) -> None:
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 9, [0] + [1] * 8])
    both_paths(new_model(), IDS, attention_mask=mask, max_new_tokens=50, **settings)


@pytest.mark.parametrize("settings", [{"prompt_lookup_num_tokens": 4}, {"assistant_model": new_model(5)}])
@pytest.mark.filterwarnings("ignore:.*")
def test_assisted_generation_gives_the_tokens_of_pytorch(settings: dict[str, Any]) -> None:
    both_paths(new_model(), IDS[:1].repeat(1, 2), max_new_tokens=40, **settings)


OUTPUTS: dict[str, Any] = {
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 60,
    "eos_token_id": [], "pad_token_id": 0, "seed": 2,
}  # fmt: skip


@pytest.mark.parametrize("settings", [
    {"name": "gqa2"}, {"name": "dynamic_mqa"}, {"dtype": torch.bfloat16, "max_new_tokens": 1},
    {"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    {"do_sample": True, "num_return_sequences": 2, "top_k": 0}, {"prompt_lookup_num_tokens": 3, "rows": 1},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*")
def test_outputs_are_those_of_pytorch(settings: dict[str, Any]) -> None:
    """Scores, logits and the cache; the cache continues in the module, also where keys are cached unrotated."""
    settings, dtype = dict(settings), settings.get("dtype", torch.float32)
    model = pair(config_of(**CONFIGURATIONS[settings.pop("name", "gqa4")], max_position_embeddings=128))[0].to(dtype)
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 9, [0] + [1] * 8])[-settings.pop("rows", 3) :]
    options = {**OUTPUTS, "attention_mask": mask, **{key: value for key, value in settings.items() if key != "dtype"}}
    native = model.generate(IDS[-len(mask) :], **options)
    assert model.generation_path == "native"
    model.native_generation = False
    expected = model.generate(IDS[-len(mask) :], **options)
    assert model.generation_path.startswith("torch")
    limit = 1e-5 if dtype == torch.float32 else 0.1
    assert list(native) == list(expected)
    assert torch.equal(native.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert max(map(distance, native[name], expected[name])) <= limit
    for ours, theirs in zip(native.past_key_values, expected.past_key_values, strict=True):
        assert ours[0].dtype == dtype
        rows = len(ours[0]) // len(mask)
        columns = torch.nn.functional.pad(mask, (0, ours[0].shape[2] - mask.shape[1]), value=1)
        real = columns.repeat_interleave(rows, 0).bool()  # (rows, tokens)
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            assert distance(a.transpose(1, 2), b.transpose(1, 2), real) <= limit
    if rows == 1:
        token, every = native.sequences[:, -1:], torch.cat((columns, mask[:, :1] | 1), dim=1)
        logits = [
            model(token, attention_mask=every, past_key_values=out.past_key_values).logits for out in (native, expected)
        ]
        assert distance(*logits) <= limit


def test_tokens_after_embeddings_equal_those_of_pytorch() -> None:
    model = new_model()
    embeds = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    assert both_paths(model, inputs_embeds=embeds, attention_mask=mask).shape == (2, 12)


def test_prompts_longer_than_a_native_call_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_TOKENS", 16)
    ids, mask, _ = ragged(config_of(), (50, 3, 16, 47), "left")
    both_paths(new_model(), ids, attention_mask=mask)


def test_equal_prompts_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    tokens: list[int] = []
    logits = runtime.NativeRuntime.logits

    def counted(self: Any, chunks: list[Any]) -> Any:
        tokens.append(sum(len(chunk.tokens) for chunk in chunks))
        return logits(self, chunks)

    monkeypatch.setattr(runtime.NativeRuntime, "logits", counted)
    result = model.generate(IDS[:1], num_return_sequences=4, do_sample=True, max_new_tokens=3, eos_token_id=[], seed=5)
    assert tokens == [9, 4, 4]
    assert len({tuple(row) for row in result.tolist()}) > 1
    both_paths(model, IDS[:1].repeat(3, 1), do_sample=True, max_new_tokens=55)


def test_any_order_of_rows_and_any_branch_of_a_cache_equals_pytorch() -> None:
    """Random beams: rows are reordered, repeated, shortened, and continued twice from the same cache."""
    model = new_model(max_position_embeddings=256)
    generator = torch.Generator().manual_seed(1)
    ids, mask, _ = ragged(model.config, (60, 66, 3, 70), "left")
    forwards: list[Any] = [forward_of(model, mask), TorchForward(model, Prompt(ids, None, mask, None))]

    def compare(ids: Tensor, mask: Tensor, caches: list[Any], keep: int) -> list[Any]:
        outputs = [forward.forward(ids, mask, caches.pop(0), keep) for forward in forwards]
        assert distance(outputs[0].logits, outputs[1].logits) < 2e-5
        return [out.past_key_values for out in outputs]

    with torch.no_grad():
        caches = compare(ids, mask, [None, None], 1)
        for turn in range(30):
            rows = torch.randint(0, len(ids), (4,), generator=generator)
            ids, mask = ids[rows], mask[rows]
            caches = [forward.reorder(caches.pop(0), rows) for forward in forwards]
            if turn % 7 == 6:
                length = ids.shape[1] - 4
                ids, mask = ids[:, :length], mask[:, :length]
                caches = [forward.crop(caches.pop(0), length) for forward in forwards]
            other, new = (torch.randint(3, 67, (4, count), generator=generator) for count in (2, 1 + turn % 3))
            compare(torch.cat((ids, other), dim=1), nn.functional.pad(mask, (0, 2), value=1), [*caches], 2)
            ids, mask = torch.cat((ids, new), dim=1), nn.functional.pad(mask, (0, new.shape[1]), value=1)
            caches = compare(ids, mask, caches, 1)


# ---- changes of the weights


def _replace(model: LlamaForCausalLM) -> None:
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.randn(80, 48))


def _swap_rows_of_data(model: LlamaForCausalLM) -> None:
    weight = model.model.layers[1].self_attn.v_proj.weight.data
    weight[[0, 5]] = weight[[5, 0]]


def _swap_columns_of_data(model: LlamaForCausalLM) -> None:
    weight = model.model.layers[1].mlp.down_proj.weight.data
    weight[:, [0, 5]] = weight[:, [5, 0]]


def _train(model: LlamaForCausalLM) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()


CHANGES: dict[str, Callable[[LlamaForCausalLM], object]] = {
    "in place": lambda model: model.lm_head.weight.detach().mul_(-1),
    "through data": lambda model: model.model.embed_tokens.weight.data[43].add_(1.0),
    "through data, as PEFT merges": lambda model: setattr(
        model.lm_head.weight, "data", model.lm_head.weight.data.add_(torch.randn(67, 48))
    ),
    "through NumPy": lambda model: model.model.norm.weight.detach().numpy().fill(-0.5),
    "one value through NumPy": lambda model: model.lm_head.weight.detach().numpy().__setitem__((40, 7), 90.0),
    "rows swapped": _swap_rows_of_data,
    "columns swapped": _swap_columns_of_data,
    "another parameter": _replace,
    "a training step": _train,
    "another state dict": lambda model: model.load_state_dict(new_model(9).state_dict()),
    "more embeddings": lambda model: model.resize_token_embeddings(72),
    "a tied head": lambda model: setattr(model.lm_head, "weight", model.model.embed_tokens.weight),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_packed_again(change: Callable[[LlamaForCausalLM], object]) -> None:
    model = new_model(3)
    before = both_paths(model, IDS)
    model.generate(IDS, max_new_tokens=1)
    change(model)
    assert not torch.equal(both_paths(model, IDS), before)


def test_unchanged_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, count = new_model(), 0
    create = runtime.NativeRuntime.__init__

    def counted(self: Any, *arguments: Any) -> None:
        nonlocal count
        count += 1
        create(self, *arguments)

    monkeypatch.setattr(runtime.NativeRuntime, "__init__", counted)
    for _ in range(3):
        model.generate(IDS, max_new_tokens=2)
    model.generate(IDS, max_new_tokens=2, use_cache=False)
    model.eval().generate(IDS, max_new_tokens=2)
    assert count == 1


def test_the_packed_weights_are_freed_on_request_and_with_the_model() -> None:
    def pack(model: LlamaForCausalLM) -> weakref.ref[runtime.NativeRuntime]:
        model.generate(IDS, max_new_tokens=2)
        return weakref.ref(choice._PACKED[model].runtime)

    model = new_model()
    packed = pack(model)
    model.native_generation = False
    assert packed() is None
    model.native_generation = True
    packed = pack(model)
    model.double().generate(IDS, max_new_tokens=2)
    assert packed() is None
    packed = pack(model.float())
    del model
    gc.collect()
    assert packed() is None


def test_pages_are_free_after_each_call_also_after_an_error() -> None:
    model = new_model()

    def fail(ids: Tensor, scores: Tensor) -> Tensor:
        raise ZeroDivisionError

    for _ in range(5):
        model.generate(IDS, max_new_tokens=30, do_sample=True, num_return_sequences=3)
        with pytest.raises(ZeroDivisionError):
            model.generate(IDS, max_new_tokens=30, logits_processor=[fail])
    assert choice._PACKED[model].runtime.pool.used <= 18


def test_a_model_that_has_generated_can_be_copied_and_pickled() -> None:
    model = new_model()
    expected = model.generate(IDS, max_new_tokens=4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.generate(IDS, max_new_tokens=4), expected)
        assert other.generation_path == "native"


def test_calls_in_several_threads_do_not_affect_each_other() -> None:
    model = new_model(max_position_embeddings=256)
    prompts = [torch.randint(3, 67, (rows, length)) for rows, length in ((1, 5), (3, 60), (2, 64))]
    expected = [model.generate(prompt, max_new_tokens=40, eos_token_id=[]) for prompt in prompts]
    results: dict[int, list[Tensor]] = {index: [] for index in range(3)}

    def repeat(index: int) -> None:
        for _ in range(4):
            results[index].append(model.generate(prompts[index], max_new_tokens=40, eos_token_id=[]))

    threads = [threading.Thread(target=repeat, args=(index,)) for index in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, tokens in results.items():
        assert len(tokens) == 4
        assert all(torch.equal(result, expected[index]) for result in tokens)
