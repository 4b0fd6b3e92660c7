"""Memory of activations: used again when it is free, and never while a backward pass needs it."""

from __future__ import annotations

import errno
import mmap

import pytest
import torch

from puna.training.forward.fused import products
from puna.training.forward.fused.block import Block, Blocks, block_bytes
from puna.training.forward.fused.layer import FusedLayer
from puna.training.forward.fused.model import FusedForward
from tests.training.forward.batches import attached, new_batch, new_model

METHODS = {
    "LoRA": ("lora", {"rank": 4}),
    "LoRA with dropout": ("lora", {"rank": 4, "dropout": 0.3}),
    "DoRA": ("lora", {"rank": 4, "dora": True}),
    "IA3": ("ia3", {}),
    "full": ("full", {}),
    "last layers": ("lora", {"rank": 4, "layers": 1}),
}


def gradients(forward, *batches):
    losses = [forward.losses(batch, 1.0) for batch in batches]
    for loss in losses:
        loss.backward()
    values = {name: item.grad.clone() for name, item in forward.trainable.parameters.items()}
    for item in forward.trainable.parameters.values():
        item.grad = None
    return values


def test_tensors_of_a_block_do_not_overlap():
    memory = torch.zeros(3 * block_bytes((7, 3), torch.float32), dtype=torch.uint8)
    block = Block(memory)
    tensors = [block.empty((7, 3), torch.float32).fill_(index) for index in range(2)]
    kept = block.keep(torch.arange(5), torch.bfloat16)
    assert kept.tolist() == [0, 1, 2, 3, 4]
    assert block.keep(kept, torch.bfloat16) is kept
    assert all(bool((tensor == index).all()) for index, tensor in enumerate(tensors))
    larger = block.keep(torch.arange(40), torch.float32)  # what does not fit has memory of its own
    assert larger.untyped_storage().data_ptr() != memory.data_ptr()
    assert larger.tolist() == list(range(40))


def test_memory_is_used_again_when_all_tensors_are_gone():
    memory = Blocks()
    start = memory.take([64, 128])[0].empty((4,), torch.float32).data_ptr()
    first, second = memory.take([128, 64])
    kept = second.empty((4,), torch.float32)
    assert first.empty((4,), torch.float32).data_ptr() == start
    del first, second
    assert memory.take([64])[0].empty((4,), torch.float32).data_ptr() != start
    del kept
    again = memory.take([64])[0].empty((4,), torch.float32).data_ptr()
    assert memory.take([64])[0].empty((4,), torch.float32).data_ptr() == again


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages to ask for")
def test_a_kernel_without_transparent_huge_pages_is_no_error(monkeypatch):
    asked = []

    class Memory(mmap.mmap):
        def madvise(self, option):
            asked.append(option)
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Memory)
    assert Blocks().take([64])[0].empty((4,), torch.float32).fill_(1).tolist() == [1] * 4
    assert asked == [mmap.MADV_HUGEPAGE]


def test_an_evaluation_frees_the_memory():
    forward = FusedForward(attached(new_model(), "lora", rank=4))
    before = gradients(forward, new_batch(40, 30))
    assert forward._blocks._memory is not None
    forward.training = False
    with torch.no_grad():
        forward.losses(new_batch(40, 30), 1.0)
    assert forward._blocks._memory is None
    forward.training = True
    after = gradients(forward, new_batch(40, 30))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_without_blocks(name, dtype, monkeypatch):
    method, options = METHODS[name]
    forward = FusedForward(attached(new_model().to(dtype), method, **options))
    batches = [new_batch(40, 30, seed=1), new_batch(50, 40, 9, seed=2)]
    found = [gradients(forward, batches[0]), gradients(forward, batches[1]), gradients(forward, *batches)]
    monkeypatch.setattr(FusedLayer, "kept_bytes", lambda *_: 0)
    expected = [gradients(forward, batches[0]), gradients(forward, batches[1]), gradients(forward, *batches)]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("onednn", [products._ONEDNN, True])
def test_all_kept_values_are_in_the_block(name, onednn, monkeypatch):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch lacks oneDNN")
    monkeypatch.setattr(products, "_ONEDNN", onednn)
    method, options = METHODS[name]
    trainable = attached(new_model().bfloat16(), method, **options)
    forward = FusedForward(trainable)
    blocks, take = [], Blocks.take
    monkeypatch.setattr(Blocks, "take", lambda self, sizes: blocks.extend(take(self, sizes)) or blocks)
    loss = forward.losses(new_batch(40, 30), 1.0)
    for block in blocks[forward._lowest :]:
        assert 0.9 * len(block._bytes) < block._used <= len(block._bytes)
    assert all(not len(block._bytes) for block in blocks[: forward._lowest])
    loss.backward()


def test_outputs_that_products_do_not_write_need_no_block(monkeypatch):
    forward = FusedForward(attached(new_model().float(), "lora", rank=4))
    for onednn in (True, False):
        monkeypatch.setattr(products, "_ONEDNN", onednn)
        assert (forward._layers[-1].kept_bytes(70) == 0) is onednn
