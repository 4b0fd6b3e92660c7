"""Ragged batches of `TorchBackend`: random schedules, hidden states, embeddings, adapters, and contents of pages."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from puna import LLM, convert
from puna.backend import PAGE, Chunk, LowRank
from puna.checkpoint import open_checkpoint
from puna.errors import BackendError, RequestError
from puna.model import LlamaForCausalLM, TorchBackend
from puna.model.paged.attention import attend_pages
from puna.model.paged.decode import DecodeStep, highest_tokens
from puna.model.paged.joined import join_layers
from puna.model.paged.ragged import group_chunks
from puna.native import NativeBackend
from tests.golden.files import LAYOUTS
from tests.helpers.configurations import DYNAMIC, config_of
from tests.helpers.reference_models import pair

VOCAB, CONTEXT = 67, 512
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def model_of(**fields: object) -> LlamaForCausalLM:
    return pair(config_of(**{"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, **fields}))[0]


def all_logits(model: LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    """Returns the model's logits of every position."""
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    assert result.shape == expected.shape
    assert float(np.abs(result - expected).max(initial=0)) <= 1e-5 * float(np.abs(expected).max(initial=1))


class Sequences:
    """Texts that a schedule reads in random chunks; their pages are scattered over the cache."""

    def __init__(self, random: np.random.Generator, count: int, context: int = CONTEXT) -> None:
        self.random = random
        self.texts = [random.integers(3, VOCAB, random.integers(1, context)) for _ in range(count)]
        pages = iter(random.permutation(count * context // PAGE).tolist())
        self.pages = [tuple(next(pages) for _ in range(-(-len(text) // PAGE))) for text in self.texts]
        self.read = [0] * count

    def next_batch(self) -> list[tuple[int, Chunk]]:
        """Returns chunks of some texts, with their indices; most of them have one token."""
        batch = []
        for index in self.random.permutation(len(self.texts)).tolist():
            start, left = self.read[index], len(self.texts[index]) - self.read[index]
            if left and self.random.random() < 0.7:
                count = min(left, int(self.random.choice([1, 1, 1, 2, 5, self.random.integers(1, 200)])))
                rows = int(self.random.choice([0, 1, count]))
                tokens = self.texts[index][start : start + count]
                batch.append((index, Chunk(self.pages[index], tokens, start, rows)))
                self.read[index] += count
        return batch


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "fields", [{}, {"rope_scaling": DYNAMIC, "max_position_embeddings": 64}, {"attention_bias": True}], ids=str
)
def test_random_batches_return_the_logits_of_complete_texts(fields: dict, device: str) -> None:
    model = model_of(**fields)
    backend = TorchBackend(copy.deepcopy(model).to(device), slots=8 * CONTEXT // model.config.context_length)
    counts: Counter = Counter()
    by_length = "rope_scaling" in fields
    # The expected logits by length need a pass for each token, so these have a third of the cases.
    for seed in range(1 if by_length else 3):
        sequences = Sequences(np.random.default_rng(seed), 8)
        expected = [all_logits(model, text) for text in sequences.texts]
        for _ in range(25):
            batch = sequences.next_batch()
            logits = backend.forward([chunk for _, chunk in batch]).logits
            ends = [(index, chunk.start + len(chunk.tokens), chunk.rows) for index, chunk in batch]
            rows = [expected[index][end - count : end] for index, end, count in ends]
            assert_close(logits, np.concatenate([np.empty((0, VOCAB), np.float32), *rows]))
            groups = group_chunks([chunk for _, chunk in batch], by_length)
            counts.update(grouped=max(map(len, groups), default=0) > 1, groups=len(groups) > 2)
    assert min(counts["grouped"], counts["groups"]) > 5


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_equal_to_those_of_the_native_backend(device: str) -> None:
    """Both compute in float32; their logits differ by less than 1e-4."""
    checkpoint = open_checkpoint(LAYOUTS["hf"])
    native = NativeBackend(checkpoint.config, checkpoint.tensors, 1, slots=8, float32=True)
    backend = TorchBackend.from_pretrained(LAYOUTS["hf"], slots=8, dtype="float32", device=device)
    sequences = Sequences(np.random.default_rng(4), 8, checkpoint.config.context_length)
    for _ in range(20):
        batch = [chunk for _, chunk in sequences.next_batch()]
        results = native.forward(batch).logits, backend.forward(batch).logits
        assert np.abs(results[0] - results[1]).max(initial=0) < 1e-4
        near = np.sort(results[0], axis=-1)[:, -2:] @ [-1, 1] < 2e-4
        assert (near | (results[0].argmax(-1) == results[1].argmax(-1))).all()
    native.close()


def test_values_of_other_sequences_are_never_read() -> None:
    backend = TorchBackend(model_of(), slots=2)
    ids = np.random.default_rng(0).integers(3, VOCAB, 200)
    long, short = Chunk((1, 2, 3, 4), ids, 0), Chunk((5, 6, 7, 8), ids[:70], 0)
    backend.forward([long, short])
    expected = all_logits(backend.model, ids[:71])[-1:]
    broken = np.full((2, 2, PAGE, backend.config.head_dim), np.nan, np.float32)  # (L, K, PAGE, E)
    for page in (0, 7, 8):  # not used by the short sequence
        backend.fill_pages([page], broken, broken)
    logits = backend.forward([Chunk((1, 2, 3, 4), ids[:1], 200), Chunk((5, 6, 7, 8), ids[70:71], 70)]).logits
    assert_close(logits[1:], expected)


def test_hidden_states_and_embeddings() -> None:
    model = model_of()
    backend = TorchBackend(model, slots=4)
    ids = np.random.default_rng(1).integers(3, VOCAB, 20)
    with torch.no_grad():
        embeddings = model.model.embed_tokens(torch.from_numpy(ids)).numpy()
        expected = model.model(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    outputs = backend.forward(
        [
            Chunk((0,), ids, 0, 2),
            Chunk((1,), ids, 0, 3, "hidden"),
            Chunk((2,), np.zeros(20, np.int64), 0, 1, "hidden", embeddings),
            Chunk((3,), np.zeros(20, np.int64), 0, 1, "logits", embeddings),
        ]
    )
    assert_close(outputs.hidden, expected[[-3, -2, -1, -1]])
    assert_close(outputs.logits, all_logits(model, ids)[[-2, -1, -1]])


def random_adapter(random: np.random.Generator, model: LlamaForCausalLM) -> dict[str, LowRank]:
    """Returns changes of some matrices, among them the head."""

    def floats(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) * 0.2).astype(np.float32)

    products = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name and (random.random() < 0.5 or "lm_head" in name):
            out, inputs = parameter.shape
            products[name] = LowRank(
                floats(3, inputs),
                floats(out, 3),
                floats(out) if random.random() < 0.5 else None,
                1 + floats(out) if random.random() < 0.5 else None,
            )
    return products


def changed_model(model: LlamaForCausalLM, products: dict[str, LowRank]) -> LlamaForCausalLM:
    """Returns a copy whose matrices contain the changes."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, low in products.items():
            layer = changed.get_submodule(name.removesuffix(".weight"))
            layer.weight += torch.from_numpy(low.b @ low.a)
            if low.row_scale is not None:
                layer.weight *= torch.from_numpy(low.row_scale)[:, None]
            if low.bias is not None:
                bias = torch.from_numpy(low.bias)
                layer.bias = torch.nn.Parameter(bias if layer.bias is None else layer.bias + bias)
    return changed


@pytest.mark.parametrize("bias", [False, True])
def test_adapters_change_only_their_chunks(bias: bool) -> None:
    random = np.random.default_rng(2)
    model = model_of(attention_bias=bias, mlp_bias=bias)
    backend = TorchBackend(model, slots=8)
    products = [random_adapter(random, model) for _ in range(2)]
    first, second = map(backend.load_adapter, products)
    models = {0: model, first: changed_model(model, products[0]), second: changed_model(model, products[1])}
    texts = random.integers(3, VOCAB, (7, 90))
    numbers = (first, 0, second, second, 0, first, 0)
    chunks = [Chunk((2 * i, 2 * i + 1), texts[i], 0, 2, adapter=number) for i, number in enumerate(numbers)]
    expected = [all_logits(models[number], text) for number, text in zip(numbers, texts, strict=True)]
    lengths = (80, 80, 80, 33, 89, 89, 1)
    read = [replace(chunk, tokens=chunk.tokens[:n]) for chunk, n in zip(chunks, lengths, strict=True)]
    assert_close(
        backend.forward([replace(chunk, rows=1) for chunk in read]).logits,
        np.stack([rows[n - 1] for rows, n in zip(expected, lengths, strict=True)]),
    )
    decoded = [
        replace(chunk, tokens=chunk.tokens[n : n + 1], start=n, rows=1)
        for chunk, n in zip(chunks, lengths, strict=True)
    ]
    assert_close(
        backend.forward(decoded).logits, np.stack([rows[n] for rows, n in zip(expected, lengths, strict=True)])
    )
    backend.drop_adapter(first)
    with pytest.raises(RequestError, match=f"there is no adapter {first}"):
        backend.forward([chunks[0]])
    assert backend.load_adapter(products[0]) not in (first, second)


def test_adapters_of_another_model_are_errors() -> None:
    backend = TorchBackend(model_of())
    low = LowRank(np.zeros((2, 64), np.float32), np.zeros((64, 2), np.float32))
    with pytest.raises(
        BackendError, match=r"changes 'model.layers.9.self_attn.q_proj.weight', which the model does not"
    ):
        backend.load_adapter({"model.layers.9.self_attn.q_proj.weight": low})
    with pytest.raises(BackendError, match=r"changes 'model.embed_tokens.weight', which is not a matrix product"):
        backend.load_adapter({"model.embed_tokens.weight": low})
    with pytest.raises(BackendError, match=r"have shapes \(2, 64\) and \(64, 2\); they must be \(rank, 80\)"):
        backend.load_adapter({"model.layers.0.mlp.down_proj.weight": low})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_can_be_saved_and_restored(dtype: torch.dtype) -> None:
    ids = np.random.default_rng(3).integers(3, VOCAB, 150)
    backend = TorchBackend(model_of().to(dtype), slots=2)
    backend.forward([Chunk((4, 1, 2), ids[:140], 0, 0)])
    data = backend.read_pages([4, 1, 2])
    assert data.shape == (3, backend.page_bytes)
    assert data.dtype == np.uint8
    other = TorchBackend(backend.model, slots=2)
    other.write_pages([7, 3, 0], data)
    assert np.array_equal(other.read_pages([3, 0]), data[1:])
    results = [
        backend.forward([Chunk((4, 1, 2), ids[140:], 140)]).logits,
        other.forward([Chunk((7, 3, 0), ids[140:], 140)]).logits,
    ]
    assert np.array_equal(*results)


def test_pages_can_be_filled_with_keys_and_values() -> None:
    model = model_of()
    ids = np.random.default_rng(3).integers(3, VOCAB, 90)
    with torch.no_grad():
        cache = model(torch.from_numpy(ids[:80])[None], use_cache=True).past_key_values
    keys, values = (np.stack([pair[part][0].numpy() for pair in cache]) for part in (0, 1))
    backend = TorchBackend(model, slots=2)
    backend.fill_pages([5, 2], keys, values)
    assert_close(backend.forward([Chunk((5, 2), ids[80:], 80, 10)]).logits, all_logits(model, ids)[80:])
    by_length = TorchBackend(model_of(rope_scaling=DYNAMIC), slots=2)
    with pytest.raises(BackendError, match="depends on the length of the text"):
        by_length.fill_pages([5, 2], keys, values)


@pytest.mark.parametrize("bias", [False, True])
def test_a_decoding_step_of_a_graph_is_equal_to_that_of_a_ragged_batch(bias: bool) -> None:
    """The step that is captured on a GPU, here without compilation and with PyTorch's form of the kernels."""
    backend = TorchBackend(model_of(attention_bias=bias, mlp_bias=bias), slots=3)
    random = np.random.default_rng(5)
    texts = [random.integers(3, VOCAB, count) for count in (1, 70, 333)]
    pages = [tuple(random.permutation(8) + 8 * index) for index in range(3)]
    backend.forward([Chunk(table, text[:-1], 0, 0) for table, text in list(zip(pages, texts, strict=True))[1:]])
    chunks = [Chunk(table, text[-1:], len(text) - 1) for table, text in zip(pages, texts, strict=True)]
    expected = backend.forward(chunks).logits
    cache = backend._cache
    cache.limit += 1  # the spare page, which only the cache of a GPU has
    cache.reserve(cache.limit)
    cache.limit -= 1
    layers = backend.model.model.layers
    for step in [DecodeStep(backend.model, cache, 5, part) for part in (layers, join_layers(layers))]:
        for batch, rows in ((chunks, expected), (chunks[1:], expected[1:]), (chunks, expected)):
            with torch.inference_mode():
                step.load(batch)
                logits, tokens = (part[: len(batch)].numpy() for part in step.compute())
            assert_close(logits, rows)
            assert tokens.tolist() == rows.argmax(-1).tolist()


@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_share_the_memory_of_the_model(bias: bool) -> None:
    model = model_of(attention_bias=bias, mlp_bias=bias)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    joined = join_layers(model.model.layers)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    storages = {part.untyped_storage().data_ptr() for part in model.state_dict().values()}
    parts = [*joined.parameters()]
    assert {part.untyped_storage().data_ptr() for part in parts} <= storages
    assert len(parts) < len([*model.model.layers.parameters()])


def test_packed_matrices_are_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    convert(LAYOUTS["hf"], path, quantize="Q4_0")
    layers = LlamaForCausalLM.from_pretrained(path, keep_quantized=True).model.layers
    assert join_layers(layers) is layers


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_can_return_the_tokens_of_the_highest_logits(device: str) -> None:
    model = model_of()
    backend = TorchBackend(copy.deepcopy(model).to(device), slots=4)
    ids = np.random.default_rng(6).integers(3, VOCAB, (4, 30))
    expected = [all_logits(model, text) for text in ids]
    kinds = ("token", "logits", "token", "hidden")
    for kinds_of_step in (kinds, ("token",) * 4, ("logits", "token", "token", "logits")):
        chunks = [Chunk((row,), ids[row, :20], 0, 3, kind) for row, kind in enumerate(kinds_of_step)]
        read = backend.forward(chunks)
        decoded = backend.forward([Chunk((row,), ids[row, 20:21], 20, 1, k) for row, k in enumerate(kinds_of_step)])
        for outputs, positions in ((read, [17, 18, 19]), (decoded, [20])):
            rows = {kind: [i for i in range(4) if kinds_of_step[i] == kind] for kind in kinds}
            logits = [expected[row][positions] for row in rows["logits"]]
            assert_close(outputs.logits, np.concatenate([np.empty((0, VOCAB), np.float32), *logits]))
            tokens = [expected[row][positions].argmax(-1) for row in rows["token"]]
            assert outputs.tokens.tolist() == np.concatenate(tokens).tolist()
            assert len(outputs.hidden) == len(rows["hidden"]) * len(positions)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lowest_of_equal_tokens_is_chosen(device: str, dtype: torch.dtype) -> None:
    logits = torch.randint(0, 9, (300, 5000), generator=torch.Generator().manual_seed(0))
    expected = logits.numpy().argmax(-1)  # NumPy returns the first
    logits = logits.to(device, dtype)
    assert highest_tokens(logits).tolist() == expected.tolist()
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        logits[row, 4000 + row] = value
    assert highest_tokens(logits).tolist() == [-1, -1, -1, *expected[3:]]


def test_matrices_can_stay_packed(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    convert(LAYOUTS["hf"], path, quantize="Q4_0")
    packed, floats = (LLM(path, "torch", keep_quantized=keep) for keep in (True, False))
    sizes = [
        sum(tensor.nbytes for tensor in (*llm._backend.model.buffers(), *llm._backend.model.parameters()))
        for llm in (packed, floats)
    ]
    assert sizes[0] < 0.4 * sizes[1]  # q8_0 in the embedding and the head, q4_0 elsewhere, float32
    assert packed.generate([5, 6, 7], max_tokens=12).ids == floats.generate([5, 6, 7], max_tokens=12).ids
    assert LLM(path, keep_quantized=True).backend == "native"  # which keeps them packed
    assert LLM(path, dtype="float32", keep_quantized=True).backend == "torch"
    with pytest.raises(BackendError, match="keep_quantized is True, but with dtype 'float32'"):
        LLM(path, "native", dtype="float32", keep_quantized=True)
    with pytest.raises(RequestError, match="keep_quantized is 1; it must be True or False"):
        LLM(path, keep_quantized=1)


@pytest.mark.skipif(find_spec("triton") is None or not torch.cuda.is_available(), reason="needs a GPU and Triton")
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "width"), [(1, 32, 4, 64), (5, 6, 2, 48), (300, 4, 4, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_equal_to_attention_in_pytorch(
    rows: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    pages = rows * 9
    stored = [torch.randn((pages * PAGE, kv_heads, width), generator=generator) for _ in ("keys", "values")]
    queries = torch.randn((rows, heads, width), generator=generator)
    tables = torch.randperm(pages, generator=generator).view(rows, 9).int()
    lengths = torch.randint(1, 9 * PAGE, (rows,), generator=generator).int()
    for table, length in zip(tables.tolist(), lengths.tolist(), strict=True):  # later tokens must not be read
        last = table[(length - 1) // PAGE] * PAGE
        for part in stored:
            part[last + (length - 1) % PAGE + 1 : last + PAGE] = torch.nan
    expected = attend_pages(queries, (stored[0], stored[1]), tables, lengths)
    keys, values, queries = (part.to("cuda", dtype) for part in (*stored, queries))
    result = attend_pages(queries, (keys, values), tables.cuda(), lengths.cuda()).float().cpu()
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    assert (result - expected).abs().max() <= limit * expected.abs().max()
