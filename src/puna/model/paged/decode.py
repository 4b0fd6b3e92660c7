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
from torch import Tensor, nn

from puna.backend import PAGE, Chunk, Outputs, page_count
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

RunEmbedding = Callable[[LlamaForCausalLM, Tensor], Tensor]
RunLayer = Callable[[nn.Module, Tensor, Step, Pair], Tensor]
RunHead = Callable[[LlamaForCausalLM, Tensor], tuple[Tensor, Tensor]]


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


def run_embedding(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Returns the embeddings, (1, N, D), of ids, (N)."""
    return model.model.embed(ids[None])


def run_layer(layer: nn.Module, x: Tensor, step: Step, past: Pair) -> Tensor:
    """Returns the output of a decoder layer. All layers share its compiled form."""
    out: Tensor = layer(x, step, past)[0]
    return out


def run_head(model: LlamaForCausalLM, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits, (N, V), and the tokens of the highest, (N), of the last layer's output, (1, N, D)."""
    logits = model.logits(model.model.norm(x))[0]
    return logits, highest_tokens(logits)


def highest_tokens(logits: Tensor) -> Tensor:
    """Returns the id of the highest logit of each row of (N, V), the lowest of equal ones; -1 if any is not finite."""
    return torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1)


class DecodeStep:
    """A step of N rows whose inputs have fixed addresses.

    Args:
        layers: the model's decoder layers, or layers that compute the same.
    """

    def __init__(self, model: LlamaForCausalLM, cache: PagedCache, rows: int, layers: nn.ModuleList) -> None:
        self._model, self._cache, self._layers = model, cache, layers
        width = 2 + page_count(model.config.context_length)
        self._host = torch.zeros((rows, width), dtype=torch.int32, pin_memory=model.device.type == "cuda")
        self._inputs = torch.zeros((rows, width), dtype=torch.int32, device=model.device)  # id, position, pages
        self._tables: list[tuple[int, ...]] = [()] * rows  # the pages in `_host`
        self.load(())

    def load(self, chunks: Sequence[Chunk]) -> None:
        """Copies the inputs of a step of one token per chunk to the device."""
        inputs, count = self._host.numpy(), len(chunks)
        inputs[:count, 0] = [int(chunk.tokens[0]) for chunk in chunks]
        inputs[:count, 1] = [chunk.start for chunk in chunks]
        inputs[count:, :2] = 0
        spare = (self._cache.limit,)
        for row, old in enumerate(self._tables):
            pages = chunks[row].pages if row < count else spare
            if pages != old:
                self._tables[row] = ()  # an interrupt may occur here
                inputs[row, 2 : 2 + len(pages)] = pages
                self._tables[row] = pages
        self._inputs.copy_(self._host, non_blocking=True)

    def compute(
        self, embedding: RunEmbedding = run_embedding, layer: RunLayer = run_layer, head: RunHead = run_head
    ) -> tuple[Tensor, Tensor]:
        """Returns the logits, (N, V), and the tokens of the highest, (N)."""
        decoder = self._model.model
        ids, positions, tables = self._inputs[:, 0], self._inputs[:, 1], self._inputs[:, 2:]
        rotation = decoder.rotary_emb(positions[None], KVCache())
        assert isinstance(rotation, Rotation), "other rotations need more than the new tokens' angles"
        pages = tables.gather(1, (positions // PAGE)[:, None].long())[:, 0]
        slots = pages.long() * PAGE + positions % PAGE
        step = Step(DecodeRope(rotation.angles, slots, tables, positions + 1), AttentionMask())
        x = embedding(self._model, ids)
        for module, pair in zip(self._layers, self._cache.layers, strict=True):
            x = layer(module, x, step, pair)
        return head(self._model, x)


@dataclass(frozen=True)
class Captured:
    """A CUDA graph of a step, its outputs, and memory of the CPU that receives them."""

    graph: torch.cuda.CUDAGraph
    step: DecodeStep
    logits: Tensor  # (N, V)
    tokens: Tensor  # (N)
    host_logits: Tensor
    host_tokens: Tensor


class DecodeGraphs:
    """The CUDA graphs of a model, by number of rows. A graph is compiled by `compile`, or when a step first needs it.

    Args:
        joined: the model's decoder layers with joined products.
    """

    def __init__(self, model: LlamaForCausalLM, cache: PagedCache, joined: nn.ModuleList) -> None:
        self._model, self._cache, self._joined = model, cache, joined
        self._graphs: dict[int, Captured] = {}
        # Layers with packed matrices are captured without compilation: their products call code of autograd.
        self._compiles = not any(isinstance(module, PackedMatrix) for module in model.modules())

    def compile(self, rows: int) -> Captured:
        """Returns the graph of a size, which is compiled if it does not exist yet."""
        if rows not in self._graphs:
            self._graphs[rows] = self._capture(rows)
        return self._graphs[rows]

    def run(self, chunks: Sequence[Chunk]) -> Outputs:
        """Returns the logits or the tokens of chunks of one token."""
        captured = self.compile(next(size for size in ROWS if size >= len(chunks)))
        captured.step.load(chunks)
        captured.graph.replay()
        captured.host_tokens.copy_(captured.tokens, non_blocking=True)
        scored = [row for row, chunk in enumerate(chunks) if chunk.output == "logits"]
        if scored:
            count = scored[-1] + 1
            captured.host_logits[:count].copy_(captured.logits[:count], non_blocking=True)
        torch.cuda.current_stream().synchronize()
        chosen = [row for row, chunk in enumerate(chunks) if chunk.output == "token"]
        return Outputs(
            captured.host_logits[scored].float().numpy(),  # here, because 2-byte numbers are transferred faster
            np.empty((0, self._model.config.hidden_size), np.float32),
            captured.host_tokens[chosen].numpy(),
        )

    def _capture(self, rows: int) -> Captured:
        # The compiler fuses products of one row with each other and with activations, but joined products with nothing.
        layers = self._model.model.layers if rows == 1 else self._joined
        step, graph = DecodeStep(self._model, self._cache, rows, layers), torch.cuda.CUDAGraph()
        functions = _compiled(rows) if self._compiles else ()
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries allocate their work space
                step.compute(*functions)
        current.wait_stream(stream)
        pool = next((other.graph.pool() for other in self._graphs.values()), None)  # graphs share temporary memory
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = step.compute(*functions)
        received = (torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in outputs)
        return Captured(graph, step, *outputs, *received)


def _compiled(rows: int) -> tuple[RunEmbedding, RunLayer, RunHead]:
    # The tuning makes a product with one row a reduction, which reads the matrix at nearly full bandwidth.
    options: dict[str, Any] = {"coordinate_descent_tuning": rows == 1}
    return (
        torch.compile(run_embedding, dynamic=False, options=options),
        torch.compile(run_layer, dynamic=False, options=options),
        torch.compile(run_head, dynamic=False, options=options),
    )
