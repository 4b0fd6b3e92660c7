"""The sizes of a run that its time and memory depend on. The operations are those of PyTorch's `FlopCounterMode`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from puna.config import LlamaConfig
from puna.model.quantized import QuantLinear
from puna.training.batch import Batch, Example
from puna.training.forward.fused.attention import GROUP_SCORES, QUERIES, SCORE_COPIES, GroupedAttention, attention_class
from puna.training.forward.fused.head import chunk_rows as head_rows
from puna.training.forward.fused.products import product_dtype
from puna.training.forward.reference import chunk_rows as reference_rows
from puna.training.forward.rows import decoder_of
from puna.training.methods.base import Trainable
from puna.training.settings import TrainingSettings

OPTIMIZER_BYTES, OPTIMIZER_SPEED = 28, 8e9
"""Bytes of a trained parameter that a step of AdamW reads and writes, and bytes per second."""

_REFERENCE_LOGITS = 6
"""Float32 copies of a chunk of logits in the reference forward pass: probabilities, gradients and conversions. From
comparing estimates with the maxima of runs: SmolLM2-135M, 4 x 256 tokens, Zen 3, 2026-11-28."""

_HEAP_GAPS = 1.5
"""Memory of activations that the reference forward pass keeps, relative to their size: values that are needed for a
moment leave gaps between them. The fused one keeps them apart from the heap. From the cases bottleneck
and prefix of tests/training/test_estimated_memory.py: Zen 3, 2026-11-28."""

_REFERENCE_FACTOR = 3.0
"""Activations that autograd keeps in the reference forward pass, relative to the fused one, until they are measured."""

_LAYER_VALUES, _SCALED_VALUES = 4, 10
"""Tensors of the size of an MLP's inner values that a layer needs for a moment: gradients and recomputed values. DoRA
has more. From the runs of `_REFERENCE_LOGITS`."""


@dataclass(frozen=True)
class Work:
    """The sizes of a run that its time and memory depend on.

    Attributes:
        config: of the model.
        trained: number of trained parameters.
        trained_matrices: number of those in matrices of the model's layers, in full fine-tuning.
        added: number of those in matrices that a method adds, such as LoRA's.
        trains_head: whether the head trains, or the embeddings with which it is tied.
        steps: optimizer steps.
        documents: of all steps.
        tokens, supervised, attended: means per document: tokens, supervised tokens, and all tokens squared.
        longest: tokens of the longest document of the data, without virtual ones.
        evaluated: documents of all evaluations together.
        held_out: documents of the last evaluation, which does not depend on the number of steps.
        virtual: tokens of a soft prompt, which precedes each document in the layers.
        chunk_rows, logit_bytes: number of rows of logits that exist at the same time, and bytes of each; 0 without
            logits.
        value_bytes: bytes of a kept activation in the type of the run.
        product_bytes: bytes of a value of a matrix product.
        kept_factor: kept activations, relative to `layer` in `kept_bytes`.
        is_fused: whether the fused forward pass computes the run.
        has_scores: whether a pass computes blocks of the scores of attention, as `GroupedAttention` does.
        row_scores: bytes that attention keeps for each pair of tokens of a row that has several documents.
        document_scores: the same for a row that is one document.
        scales_outputs: whether the outputs of all matrices are scaled, as by DoRA.
        frozen_layers: number of the layers below the lowest that trains, through which no gradient flows.
        cached_documents: documents whose activations of these layers are computed once and kept; 0 without a cache.
        cache_limit: maximum bytes of these activations in memory.
        is_served: whether the native runtime computes the forward pass, and the fused one repeats it.
    """

    config: LlamaConfig
    trained: int
    trained_matrices: int
    added: int
    trains_head: bool
    steps: int
    documents: int
    tokens: float
    supervised: float
    attended: float
    longest: int
    evaluated: int = 0
    held_out: int = 0
    virtual: int = 0
    chunk_rows: int = 0
    logit_bytes: int = 0
    value_bytes: int = 2
    product_bytes: int = 2
    kept_factor: float = 1.0
    is_fused: bool = True
    has_scores: bool = False
    row_scores: int = 0
    document_scores: int = 0
    scales_outputs: bool = False
    frozen_layers: int = 0
    cached_documents: int = 0
    cache_limit: int = 0
    is_served: bool = False

    @property
    def trained_share(self) -> float:
        """Share of the layers through which gradients flow."""
        return 1 - self.frozen_layers / self.config.num_hidden_layers

    def head_bytes(self, supervised: float) -> float:
        """Returns the memory of the logits in a pass with a number of supervised tokens."""
        return min(self.chunk_rows, supervised) * self.logit_bytes

    @property
    def cache_bytes(self) -> float:
        """Memory of the activations of frozen layers."""
        return min(self.cache_limit, self.cached_documents * self.tokens * self.config.hidden_size * self.value_bytes)

    @property
    def matrices(self) -> int:
        """Number of parameters of the matrices of all layers, without embeddings and head."""
        config = self.config
        keys = config.num_key_value_heads * config.head_dim
        heads = config.num_attention_heads * config.head_dim
        inner = 3 * config.hidden_size * config.intermediate_size
        return config.num_hidden_layers * (config.hidden_size * (2 * heads + 2 * keys) + inner)

    def forward_operations(self) -> float:
        """Returns the operations of the forward pass of a document; a multiplication and an addition are two."""
        config = self.config
        attention = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * self.attended / 2
        return 2 * (self.matrices + self.added) * (self.tokens + self.virtual) + attention + self._head_operations()

    def frozen_operations(self) -> float:
        """Returns the operations of the layers without gradients in the forward pass of a document."""
        return (self.forward_operations() - self._head_operations()) * (1 - self.trained_share)

    def _head_operations(self) -> float:
        return 2 * self.config.hidden_size * self.config.vocab_size * self.supervised

    def training_operations(self, checkpointing: bool) -> float:
        """Returns the operations of the forward and backward pass of a document.

        The backward pass computes the gradients of inputs, and those of trained matrices, each with as many operations
        as the forward pass. Checkpointing repeats the forward pass of the layers.
        """
        forward, head = self.forward_operations(), self._head_operations()
        trained = (self.trained_matrices + self.added) * (self.tokens + self.virtual)
        weights = 2 * trained + head * self.trains_head
        layers = (forward - head) * self.trained_share
        return forward + head + layers + weights + (layers if checkpointing else 0.0)

    def operations(self, checkpointing: bool = False) -> float:
        """Returns the operations of the run, with its evaluations."""
        training = self.training_operations(checkpointing) * self.documents
        if self.cached_documents:
            training -= self.frozen_operations() * max(0, self.documents - self.cached_documents)
        return training + self.forward_operations() * self.evaluated

    def seconds(self, speed: float, checkpointing: bool = False) -> float:
        """Returns the time of the run at a speed in operations per second."""
        return self.operations(checkpointing) / speed + self.steps * self.trained * OPTIMIZER_BYTES / OPTIMIZER_SPEED

    def shortened(self, steps: int) -> Work:
        """Returns the work of a run with fewer steps."""
        share = steps / self.steps
        evaluated = self.held_out + round((self.evaluated - self.held_out) * share)
        return replace(self, steps=steps, documents=round(self.documents * share), evaluated=evaluated)

    def computed(self, batch: Batch) -> int:
        """Returns the tokens of a batch in the layers, with those of soft prompts."""
        return batch.tokens + self.virtual * len(batch.lengths)

    def kept_bytes(self, tokens: float, checkpointing: bool = False, documents: float = 1.0) -> float:
        """Returns the memory of the activations that a forward pass of `tokens` tokens keeps for the backward pass."""
        config = self.config
        keys = config.num_key_value_heads * config.head_dim
        layer = (4 * config.hidden_size + 2 * keys + 2 * config.intermediate_size) * self.kept_factor
        layers = config.num_hidden_layers - self.frozen_layers
        kept = layers * config.hidden_size + layer if checkpointing else layers * layer
        scores = self.score_bytes(tokens, documents) / (max(layers, 1) if checkpointing else 1)
        return tokens * self.value_bytes * kept + scores

    def score_bytes(self, tokens: float, documents: float) -> float:
        """Returns the memory of the masks or weights of attention that a forward pass keeps, which is quadratic."""
        layers = self.config.num_hidden_layers - self.frozen_layers
        if self.row_scores and documents > 1:
            return layers * tokens**2 * self.row_scores
        return layers * tokens**2 / documents * self.document_scores

    def pass_bytes(
        self,
        tokens: float,
        supervised: float,
        checkpointing: bool = False,
        optimizer: float = 0.0,
        documents: float = 1.0,
    ) -> float:
        """Returns the memory of a forward and backward pass.

        Args:
            tokens: in the layers.
            supervised: tokens that have logits.
            optimizer: memory of a step of the optimizer, for which that of the pass is used again.
            documents: number of the documents.
        """
        count = _SCALED_VALUES if self.scales_outputs else _LAYER_VALUES
        layer = tokens * count * self.config.intermediate_size * self.product_bytes
        kept = self.kept_bytes(tokens, checkpointing, documents) * (1 if self.is_fused else _HEAP_GAPS)
        values = max(layer, self._attention_bytes(tokens)) + self.head_bytes(supervised)
        return kept + max(values, optimizer)  # the heap keeps what one of them needed and another cannot use

    def _attention_bytes(self, tokens: float) -> float:
        """Returns the memory of blocks of scores of documents of different lengths."""
        if not self.has_scores:
            return 0.0
        rows, longest = self.config.num_attention_heads * QUERIES, min(self.longest + self.virtual, tokens)
        return max(rows * longest, min(GROUP_SCORES, rows * tokens)) * torch.float32.itemsize * SCORE_COPIES


def kept_scores(config: LlamaConfig, dtype: torch.dtype, is_masked: bool) -> int:
    """Returns the bytes that PyTorch's attention keeps for each pair of tokens, by a small example.

    Its fast kernel keeps a mask, if there is one. With dropout, another kernel keeps the weights of all heads thrice.
    Which kernel is used depends on the release of PyTorch as well.
    """
    count, total = 7, 0  # no width of a head

    def add(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes if tensor.shape[-2:] == (count, count) else 0
        return tensor

    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    q, k = (torch.zeros(1, n, count, config.head_dim, dtype=dtype, requires_grad=True) for n in (heads, kv_heads))
    mask = torch.ones(1, 1, count, count, dtype=torch.bool) if is_masked else None
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(add, lambda tensor: tensor):
        F.scaled_dot_product_attention(
            q, k, k, mask, config.attention_dropout, is_causal=not is_masked, enable_gqa=heads != kv_heads
        )
    return total // count**2


def work_of(
    trainable: Trainable, examples: Sequence[Example], settings: TrainingSettings,
    *, steps: int, documents: int, evaluated: int, is_fused: bool, longest: int = 0,
) -> Work:  # fmt: skip
    """Returns the sizes of a run.

    Args:
        trainable: the loaded model with its trainable parameters.
        examples: some documents of the data.
        evaluated: documents of one evaluation.
        is_fused: whether the fused forward pass computes the run.
        longest: tokens of the longest document, if it is not among `examples`.
    """
    dtype: torch.dtype = getattr(torch, settings.dtype)
    model, parameters = trainable.model, trainable.parameters
    virtual, head = (0 if trainable.prompt is None else len(trainable.prompt)), model.get_output_embeddings()
    vocabulary, rows, logits = model.config.vocab_size, 0, 0
    if head is not None and is_fused:
        rows = head_rows(vocabulary, product_dtype(dtype), isinstance(head, QuantLinear))
        logits = vocabulary * product_dtype(dtype).itemsize
    elif head is not None:
        rows = reference_rows(vocabulary)
        logits = vocabulary * (dtype.itemsize + _REFERENCE_LOGITS * torch.float32.itemsize)
    lengths = np.array([len(example.ids) for example in examples], np.float64)
    supervised = [0 if example.label is not None else int(np.count_nonzero(example.weights)) for example in examples]
    sizes = {name: item.numel() for name, item in parameters.items() if item.ndim == 2}
    matrices = {name for name in sizes if name.endswith("_proj.weight")}
    outer = {name for name in sizes if name.endswith(("embed_tokens.weight", "lm_head.weight", "score.weight"))}
    longest = max(longest, int(lengths.max()))
    is_uniform = not settings.packing or int(lengths.min()) == longest
    attention = attention_class(dtype, model.config.head_dim, is_uniform)
    are_rows = trainable.kind == "prefix"  # in the reference pass, each document is a row with a mask
    masked, alone = (
        0 if is_fused else kept_scores(model.config, product_dtype(dtype), is_masked)
        for is_masked in (True, are_rows or decoder_of(trainable).rotary_emb.by_length)
    )
    evaluations = 1 + (steps // settings.eval_steps if settings.eval_steps else 0)
    return Work(
        config=model.config,
        trained=sum(item.numel() for item in parameters.values()),
        trained_matrices=sum(sizes[name] for name in matrices),
        added=sum(size for name, size in sizes.items() if name not in matrices | outer),
        trains_head=any("lm_head" in name or model.config.tie_word_embeddings for name in outer),
        steps=steps,
        documents=documents,
        tokens=float(lengths.mean()),
        supervised=sum(supervised) / len(supervised),
        attended=float(((lengths + virtual) ** 2).mean()),
        longest=longest,
        evaluated=evaluated * evaluations,
        held_out=evaluated,
        virtual=virtual,
        chunk_rows=rows,
        logit_bytes=logits,
        value_bytes=dtype.itemsize,
        product_bytes=product_dtype(dtype).itemsize,
        kept_factor=1.0 if is_fused else _REFERENCE_FACTOR,
        is_fused=is_fused,
        has_scores=is_fused and attention is GroupedAttention,
        row_scores=0 if are_rows else masked,
        document_scores=alone,
        scales_outputs="magnitude" in trainable.features,
        is_served=settings.forward == "served",
    )
