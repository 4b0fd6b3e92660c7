"""Memory of activations: blocks are used again, and tensors in them are independent."""

from __future__ import annotations

import gc

import pytest
import torch

from puna.native.memory import resident_memory
from puna.training.forward.fused.kept import Blocks
from puna.training.forward.fused.model import FusedForward
from tests.training.forward.batches import attached, new_batch, new_model


def test_tensors_do_not_overlap_and_count_their_own_changes():
    memory = Blocks()
    tensors = [memory.empty((7, 3), torch.float32).fill_(index) for index in range(100)]
    kept = memory.keep(torch.arange(5).bfloat16())
    assert all(bool((tensor == index).all()) for index, tensor in enumerate(tensors))
    assert kept.tolist() == [0, 1, 2, 3, 4] and kept.dtype == torch.bfloat16
    assert tensors[0]._version == 1
    assert memory.empty((0, 3), torch.float32).shape == (0, 3)


def test_a_block_is_used_again_when_its_tensors_are_gone():
    memory = Blocks()
    size = 9 << 20  # one tensor per block
    first = memory.empty((size,), torch.uint8)
    start = first.data_ptr()
    second = memory.empty((size,), torch.uint8)
    memory.finish()
    view = first[1:]
    del first
    third = memory.empty((size,), torch.uint8)
    assert third.data_ptr() not in (start, second.data_ptr())
    del view
    assert memory.empty((size,), torch.uint8).data_ptr() == start


def test_passes_of_any_lengths_need_the_memory_of_the_largest():
    forward = FusedForward(attached(new_model(), "lora", rank=4))
    lengths = [(500, 400), (3, 4), (700,), (900,), (1, 2, 600)]

    def run() -> None:
        for each in lengths:
            forward.losses(new_batch(*each), 1.0).backward()
        gc.collect()

    run()
    blocks = len(forward._memory._free)
    run()
    assert len(forward._memory._free) == blocks


def test_two_passes_may_wait_for_their_backward_passes():
    forward = FusedForward(attached(new_model(), "lora", rank=4))
    batches = [new_batch(40, 30, seed=seed) for seed in range(2)]

    def grads() -> dict[str, torch.Tensor]:
        values = {name: item.grad.clone() for name, item in forward.trainable.parameters.items()}
        for item in forward.trainable.parameters.values():
            item.grad = None
        return values

    for batch in batches:
        forward.losses(batch, 1.0).backward()
    expected = grads()
    losses = [forward.losses(batch, 1.0) for batch in batches]
    for loss in losses:
        loss.backward()
    together = grads()
    assert all(torch.equal(expected[name], together[name]) for name in expected)


def test_the_memory_of_a_forward_pass_is_returned():
    memory, size = Blocks(), 64 << 20
    before = resident_memory()
    tensor = memory.empty((size,), torch.uint8).fill_(1)
    assert resident_memory() - before > size / 2
    del tensor
    assert resident_memory() - before < size / 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_layers_keep_no_blocks(checkpointing):
    forward = FusedForward(attached(new_model(), "lora", rank=4), checkpointing)
    loss = forward.losses(new_batch(50, 60), 1.0)
    loss.backward()
    del loss
    assert bool(forward._memory._free) is not checkpointing
