"""Decoding on a GPU: a step of one token per sequence is compiled, captured as a CUDA graph and replayed.

Without a graph, a step of a small model takes longer to launch than to compute. A graph has a fixed number of rows and
fixed addresses: each step copies ids, positions and tables of pages into the graph's inputs. Rows without a sequence
use the cache's spare page.

Legend: N rows, H heads, K kv heads, E head width, D hidden, V vocabulary, W pages of a full context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.backend import PAGE, Chunk, page_count
from puna.model.attention import AttentionMask, Pair
from puna.model.cache import KVCache
from puna.model.causal_lm import LlamaForCausalLM
from puna.model.paged.attention import attend_pages
from puna.model.paged.cache import PagedCache
from puna.model.quantized import PackedMatrix
from puna.model.rope import Angles, Rotation, rotate
from puna.model.step import Step

ROWS = (1, 16, 64, 256)
"""Sizes of graphs. Up to some hundred rows, a step takes about the time in which the weights are read, so that unused
rows cost little, while each size takes seconds to compile."""

RunLayer = Callable[[nn.Module, Tensor, Step, Pair], Tensor]
RunHead = Callable[[LlamaForCausalLM, Tensor], Tensor]


@dataclass(frozen=True)
class DecodeRope:
    """The rotation of N tokens of different sequences. It implements `Rope` for a batch of one row with N tokens."""

    angles: Angles
    slots: Tensor  # rows of the cache for the new tokens, (N)
    tables: Tensor  # int32 (N, W)
    lengths: Tensor  # int32 (N)
    key_positions: None = None

    def attend(  # noqa: D102
        self, q: Tensor, k: Tensor, v: Tensor, past: Pair | None, mask: AttentionMask, dropout: float, weights: bool
    ) -> tuple[Tensor, Tensor | None, Pair]:
        assert past is not None, "the pages of the layer"
        keys, values = past
        keys[self.slots] = rotate(k, self.angles)[0].transpose(0, 1)  # (N, K, E)
        values[self.slots] = v[0].transpose(0, 1)
        out = attend_pages(rotate(q, self.angles)[0].transpose(0, 1), past, self.tables, self.lengths)  # (N, H, E)
        return out.transpose(0, 1)[None], None, past


def run_layer(layer: nn.Module, x: Tensor, step: Step, past: Pair) -> Tensor:
    """Returns the output of a decoder layer. All layers share its compiled form."""
    out: Tensor = layer(x, step, past)[0]
    return out


def run_head(model: LlamaForCausalLM, x: Tensor) -> Tensor:
    """Returns the logits, (N, V), of the last layer's output, (1, N, D)."""
    return model.logits(model.model.norm(x))[0]


class DecodeStep:
    """A step of N rows whose inputs have fixed addresses."""

    def __init__(self, model: LlamaForCausalLM, cache: PagedCache, rows: int) -> None:
        self._model, self._cache = model, cache
        width = 2 + page_count(model.config.context_length)
        self._host = torch.zeros((rows, width), dtype=torch.int32, pin_memory=model.device.type == "cuda")
        self._inputs = torch.zeros((rows, width), dtype=torch.int32, device=model.device)  # id, position, pages
        self.load(())

    def load(self, chunks: Sequence[Chunk]) -> None:
        """Copies the inputs of a step of one token per chunk to the device."""
        inputs = self._host.numpy()
        for row, chunk in zip(inputs, chunks, strict=False):
            row[0], row[1] = chunk.tokens[0], chunk.start
            row[2 : 2 + len(chunk.pages)] = chunk.pages
        inputs[len(chunks) :, :3] = 0, 0, self._cache.limit  # the spare page
        self._inputs.copy_(self._host, non_blocking=True)

    def compute(self, layer: RunLayer = run_layer, head: RunHead = run_head) -> Tensor:
        """Returns the logits, (N, V)."""
        decoder = self._model.model
        ids, positions, tables = self._inputs[:, 0], self._inputs[:, 1], self._inputs[:, 2:]
        rotation = decoder.rotary_emb(positions[None], KVCache())
        assert isinstance(rotation, Rotation), "other rotations need more than the new tokens' angles"
        pages = tables.gather(1, (positions // PAGE)[:, None].long())[:, 0]
        slots = pages.long() * PAGE + positions % PAGE
        step = Step(DecodeRope(rotation.angles, slots, tables, positions + 1), AttentionMask())
        x = decoder.embed(ids[None])  # (1, N, D)
        for module, pair in zip(decoder.layers, self._cache.layers, strict=True):
            x = layer(module, x, step, pair)
        return head(self._model, x)


class DecodeGraphs:
    """The CUDA graphs of a model, by number of rows. A graph is compiled when a step first needs it."""

    def __init__(self, model: LlamaForCausalLM, cache: PagedCache) -> None:
        self._model, self._cache = model, cache
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, DecodeStep, Tensor]] = {}
        # Layers with packed matrices are captured without compilation: their products call code of autograd.
        self._compiles = not any(isinstance(module, PackedMatrix) for module in model.modules())

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Returns the logits, (n, V), of chunks of one token."""
        rows = next(size for size in ROWS if size >= len(chunks))
        if rows not in self._graphs:
            self._graphs[rows] = self._capture(rows)
        graph, step, logits = self._graphs[rows]
        step.load(chunks)
        graph.replay()
        result = torch.empty((len(chunks), logits.shape[1]), dtype=logits.dtype, pin_memory=True)
        result.copy_(logits[: len(chunks)], non_blocking=True)
        torch.cuda.current_stream().synchronize()
        array: NDArray[np.float32] = result.float().numpy()  # here, because 2-byte numbers are transferred faster
        return array

    def _capture(self, rows: int) -> tuple[torch.cuda.CUDAGraph, DecodeStep, Tensor]:
        step, graph = DecodeStep(self._model, self._cache, rows), torch.cuda.CUDAGraph()
        functions = _compiled(rows) if self._compiles else (run_layer, run_head)
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries allocate their work space
                step.compute(*functions)
        current.wait_stream(stream)
        pool = next((other.pool() for other, _, _ in self._graphs.values()), None)  # graphs share temporary memory
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits = step.compute(*functions)
        return graph, step, logits


def _compiled(rows: int) -> tuple[RunLayer, RunHead]:
    # The tuning makes a product with one row a reduction, which reads the matrix at nearly full bandwidth.
    options: dict[str, Any] = {"coordinate_descent_tuning": rows == 1}
    return (
        torch.compile(run_layer, dynamic=False, options=options),
        torch.compile(run_head, dynamic=False, options=options),
    )
