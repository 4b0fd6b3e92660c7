"""Tensor parallelism: processes that `torchrun` started share the matrices of a model (arXiv:1909.08053).

Each process has a part of the query heads, of the kv heads and of the columns of the feed-forward network; embeddings,
norms and the head are copied. The projections o and down therefore return parts of sums, which a hook adds over the
processes. The model is changed from outside; its forward pass does not know about processes. The first process has the
engine; the others repeat each call of its backend (`follow`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.backend import Batch, LowRank, Outputs
from puna.config import LlamaConfig
from puna.errors import BackendError, RequestError
from puna.model.backend import TorchBackend
from puna.model.causal_lm import LlamaForCausalLM

_IDLE = timedelta(days=3650)
"""Time that a process waits for the next call of the first one: a server may be idle for long."""

_BY_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


def join(size: int) -> int:
    """Joins the processes that torchrun started; returns the number of this one, 0 for the first.

    Raises:
        BackendError: torchrun has not started this process, or has started another number of processes.
    """
    if not dist.is_torchelastic_launched():
        raise BackendError(
            f"--tp {size} needs {size} processes; start them with: torchrun --no-python --nproc-per-node {size} puna "
            f"serve --tp {size} ..."
        )
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_IDLE)
    if dist.get_world_size() != size:
        raise BackendError(
            f"--tp is {size}, but torchrun started {dist.get_world_size()} processes; make them equal (torchrun "
            f"--nproc-per-node {size})"
        )
    return dist.get_rank()


class ParallelBackend:
    """Implements `puna.backend.Backend` in all processes: the first one sends its calls to the others.

    Args:
        backend: a backend with the complete model, of which this process keeps its part.
        slots: number of sequences of full context that the cache has space for.
    """

    name = "torch"
    native_model: int | None = None
    chooses_tokens = False

    def __init__(self, backend: TorchBackend, slots: int) -> None:
        self.config: LlamaConfig = backend.config
        self._size, self._rank = dist.get_world_size(), dist.get_rank()
        _check(backend.model, self._size)
        _shard(backend.model, self._rank, self._size)
        self._backend = TorchBackend(backend.model, slots, cache_config=_local_config(backend.config, self._size))
        backend.close()
        pages = torch.tensor(self._backend.pages)
        dist.all_reduce(pages, dist.ReduceOp.MIN)
        self.pages = self._backend.pages = int(pages)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all processes."""
        return self._backend.page_bytes * self._size

    @property
    def numerics(self) -> str:
        """All that determines the contents of pages except the weights, the configuration and the tokens."""
        return f"{self._backend.numerics} in {self._size} processes"

    def compile(self, most: int, report: Callable[[Sequence[int]], None]) -> None:
        """Does nothing: only steps on a GPU are compiled."""

    def forward(self, batch: Batch) -> Outputs:
        """Writes the batch's keys and values; returns the outputs that its chunks request."""
        self._send("forward", batch)
        return self._backend.forward(batch)

    def load_adapter(
        self, products: Mapping[str, LowRank], replaced: Mapping[str, NDArray[np.float32]] | None = None
    ) -> int:
        """Raises BackendError."""
        raise BackendError("adapters cannot be used with --tp; merge the adapter into the model (puna merge)")

    def drop_adapter(self, number: int) -> None:
        """Does nothing: there are no adapters."""

    def read_pages(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the contents of pages, (n, page_bytes): the parts of the processes in their order."""
        self._send("read_pages", pages)
        part = self._backend.read_pages(pages)
        parts: list[Any] = [None] * self._size
        dist.gather_object(part, parts if self._rank == 0 else None)
        return np.concatenate(parts, axis=1) if self._rank == 0 else part

    def write_pages(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Restores pages that `read_pages` has returned."""
        self._send("write_pages", pages, data)
        self._backend.write_pages(pages, np.split(data, self._size, axis=1)[self._rank])

    def fill_pages(self, pages: Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Stores rotated keys and values, each (L, K, T, E), of the first T tokens of a sequence with these pages."""
        self._send("fill_pages", pages, keys, values)
        keys, values = (np.split(array, self._size, axis=1)[self._rank] for array in (keys, values))
        self._backend.fill_pages(pages, keys, values)

    def close(self) -> None:
        """Drops the model and the cache, and ends the other processes."""
        if not self._backend.closed:
            self._send("close")
            self._backend.close()

    def follow(self) -> None:
        """Repeats the calls of the first process until it closes its backend."""
        while not self._backend.closed:
            call: list[Any] = [None]
            dist.broadcast_object_list(call)
            name, arguments = call[0]
            with suppress(RequestError, BackendError):  # the first process raises and reports the same error
                getattr(self, name)(*arguments)

    def _send(self, name: str, *arguments: Any) -> None:
        if self._rank == 0:
            dist.broadcast_object_list([(name, arguments)])


def _check(model: LlamaForCausalLM, size: int) -> None:
    config = model.config
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise BackendError(f"--tp is {size}, which does not divide the model's {name}, {getattr(config, name)}")
    if any(type(module) is not nn.Linear for module in _projections(model, (*_BY_ROWS, *_BY_COLUMNS))):
        raise BackendError("--tp needs matrices of floats without pruned heads; load the model without keep_quantized")
    if model.device.type != "cpu":
        raise BackendError(f"--tp runs on the CPU, but device is {str(model.device)!r}; omit --device")


def _projections(model: LlamaForCausalLM, names: Sequence[str]) -> list[nn.Linear]:
    return [layer.get_submodule(name) for layer in model.model.layers for name in names]  # type: ignore[misc]


def _shard(model: LlamaForCausalLM, rank: int, size: int) -> None:
    """Keeps this process's part of each matrix."""
    for linear in _projections(model, _BY_ROWS):
        linear.weight = _part(linear.weight, rank, size, 0)
        if linear.bias is not None:
            linear.bias = _part(linear.bias, rank, size, 0)
        linear.out_features = len(linear.weight)
    for linear in _projections(model, _BY_COLUMNS):
        linear.weight = _part(linear.weight, rank, size, 1)
        linear.in_features = linear.weight.shape[1]
        if linear.bias is not None and rank:  # the first process adds it
            nn.init.zeros_(linear.bias)
        linear.register_forward_hook(_sum)


def _part(tensor: Tensor, rank: int, size: int, dim: int) -> nn.Parameter:
    return nn.Parameter(tensor.detach().chunk(size, dim)[rank].clone(), requires_grad=False)


def _sum(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    dist.all_reduce(output)
    return output


def _local_config(config: LlamaConfig, size: int) -> LlamaConfig:
    """Returns the configuration for the cache of one process."""
    local = copy.copy(config)
    local.num_key_value_heads = config.num_key_value_heads // size
    return local
