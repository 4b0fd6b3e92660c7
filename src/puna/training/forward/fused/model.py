"""`FusedForward`: the fast forward pass of training, for methods that change or add to the weights of matrices.

Legend: T tokens of all documents, D hidden, N virtual tokens, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.model.llama import LlamaDecoderLayer, LlamaRMSNorm
from puna.model.quantized import QuantLinear
from puna.model.rope import angles
from puna.native import training as native
from puna.training.batch import Batch
from puna.training.forward.fused.attention import Attention, attention_for
from puna.training.forward.fused.block import Blocks
from puna.training.forward.fused.frozen import ActivationCache, lowest_trained
from puna.training.forward.fused.head import cross_entropy
from puna.training.forward.fused.layer import FusedLayer, Pass
from puna.training.forward.fused.matrices import Matrix, Packed, Stored, packed_head
from puna.training.forward.fused.operations import Operations, normed_rows, operations_for
from puna.training.forward.fused.projection import master_of
from puna.training.forward.rows import Supervised, decoder_of, positions, prepend, remove, with_noise, without_last
from puna.training.memory import return_free_memory
from puna.training.methods.base import Trainable

_UNIT = 32
"""Documents of different lengths get a last one of zeros, so that their tokens are a multiple of this. oneDNN compiles
code for each number of tokens, a megabyte and a tenth of a second for all products of a small model."""


class FusedForward:
    """Computes in the type of the model. `unsupported` in `support.py` says what it does not implement.

    Args:
        trainable: the model and its trainable parameters.
        checkpointing: recompute the activations of each layer in the backward pass.
        noise: NEFTune's alpha; 0 for no noise.
        cache: keeps the activations that enter the lowest layer that trains, which must not be the first.
    """

    name = "fused"

    def __init__(
        self,
        trainable: Trainable,
        checkpointing: bool = False,
        noise: float = 0.0,
        cache: ActivationCache | None = None,
    ) -> None:
        self.trainable, self.training = trainable, True
        self._checkpointing, self._noise = checkpointing, noise
        self._cache, self._lowest = cache, lowest_trained(trainable)
        model = trainable.model
        self._decoder = decoder_of(trainable)
        self._dtype = model.dtype
        self._operations = operations_for(self._dtype)
        self._packed_head: Matrix | None = None
        self._blocks = Blocks()
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._layers = [
            FusedLayer(trainable, name, module, self._dtype)
            for name, module in model.named_modules()
            if isinstance(module, LlamaDecoderLayer)
        ]

    def hidden(self, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """Returns the hidden states after the final norm, (T, D), in the type of the model.

        Args:
            outputs: those of the layers, (L, T, D), if another implementation has computed them.
        """
        if not self.training:
            self._blocks.free()  # evaluations keep no activations
        prompt = self.trainable.prompt
        count = 0 if prompt is None else len(prompt)
        lengths = tuple(count + length for length in batch.lengths)
        seeds = batch.seeds if self.training else None
        if self._cache is None:
            x = self._embeddings(batch.ids)
            x = with_noise(x, batch, self._noise) if self.training and self._noise else x
            x = self._through(self._layers, prepend(x, batch.lengths, prompt), lengths, seeds, outputs)
        else:
            x = self._through(self._layers[self._lowest :], self._entering(batch, self._cache), lengths, seeds)
        return remove(self._normed(x), batch.lengths, count)

    def _through(
        self,
        layers: Sequence[FusedLayer],
        x: Tensor,
        lengths: tuple[int, ...],
        seeds: tuple[int, ...] | None,
        outputs: Tensor | None = None,
    ) -> Tensor:
        """Returns the output of consecutive layers for x, (T, D), the documents of these lengths."""
        tokens = len(x)
        missing = -tokens % _UNIT if len(set(lengths)) > 1 else 0
        padding = (0, 0, 0, missing)
        if missing:
            x, lengths = nn.functional.pad(x, padding), (*lengths, missing)
            seeds = None if seeds is None else (*seeds, 0)
        rotary = self._decoder.rotary_emb
        cos, sin = (part[0, 0] for part in angles(positions(lengths)[None], rotary.inv_freq, rotary.scaling))
        attention = self._attention(lengths)
        current = Pass(attention, self._operations, cos, sin, seeds, lengths, self._checkpointing)
        keeps = torch.is_grad_enabled() and outputs is None and not self._checkpointing
        trained = self._layers[self._lowest :] if keeps else []
        sizes = [layer.kept_bytes(len(x)) if layer in trained else 0 for layer in layers]
        for index, (layer, block) in enumerate(zip(layers, self._blocks.take(sizes), strict=True)):
            x = layer(x, current, block, None if outputs is None else nn.functional.pad(outputs[index], padding))
        return x[:tokens]

    def _entering(self, batch: Batch, cache: ActivationCache) -> Tensor:
        """Returns the input of the lowest layer that trains, (T, D), from the cache where it is stored."""
        documents = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
        parts = [cache.read(ids) for ids in documents]
        missing = [index for index, part in enumerate(parts) if part is None]
        together = self._dtype == torch.bfloat16 and native.has_attention()  # other attention depends on neighbours
        for group in [missing] if together and missing else [[index] for index in missing]:
            ids = [documents[index] for index in group]
            ids += [np.zeros(-len(ids[0]) % _UNIT, np.int64)] if not together else []  # see _UNIT
            lengths = tuple(length for length in map(len, ids) if length)
            x = self._through(self._layers[: self._lowest], self._embeddings(np.concatenate(ids)), lengths, None)
            for index, states in zip(group, torch.split(x, list(lengths)), strict=False):
                cache.store(documents[index], states)
                parts[index] = states
        return torch.cat([part for part in parts if part is not None])

    def losses(self, batch: Batch, scale: float) -> Tensor:
        """Returns the scalar sum over i of weights[i] * CE[i] * scale, float32."""
        weight, matrix = self.head()
        tokens = Supervised.of(batch)
        random = self.trainable.low_rank or self._noise  # dropout and noise depend on the number of tokens
        if not random and min(batch.lengths) > 1:
            batch, tokens = without_last(batch)
        hidden = self.hidden(batch)
        if isinstance(matrix, Packed):  # chosen to save memory; otherwise the pages would be needed again
            return_free_memory()
        return cross_entropy(hidden, weight, tokens, scale, matrix, self._operations)

    def head(self) -> tuple[Tensor | None, Matrix]:
        """Returns the parameter that receives the gradient of the head, (V, D), or None, and the values of the head."""
        head = self.trainable.model.get_output_embeddings()
        assert head is not None, "only language models have losses of tokens"
        if isinstance(head, QuantLinear):
            if self._packed_head is None:  # needed when a step uses most memory, so that freeing it would gain nothing
                self._packed_head = packed_head(head, self._dtype)
            return None, self._packed_head
        return self._master(head.weight), Stored(head.weight.detach().to(self._dtype), self._dtype)

    def _attention(self, lengths: tuple[int, ...]) -> Attention:
        config = self.trainable.model.config
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return attention_for(self._dtype, lengths, *heads)

    def _embeddings(self, token_ids: NDArray[np.int64]) -> Tensor:
        ids, module = torch.from_numpy(token_ids), self._decoder.embed_tokens
        if isinstance(module, nn.Embedding) and any(parameter.requires_grad for parameter in module.parameters()):
            return nn.functional.embedding(ids, self._master(module.weight), module.padding_idx).to(self._dtype)
        return self._decoder.embed(ids[None])[0].to(self._dtype)  # (T, D)

    def _normed(self, x: Tensor) -> Tensor:
        norm: LlamaRMSNorm = self._decoder.norm
        out: Tensor = _Norm.apply(x, self._master(norm.weight), norm.weight.detach(), norm.eps, self._operations)  # type: ignore[no-untyped-call]
        return out

    def _master(self, parameter: Tensor) -> Tensor:
        return master_of(self.trainable, self._names[id(parameter)], parameter)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, value: Tensor, eps: float, operations: Operations) -> Tensor:
        ctx.save_for_backward(x, value)
        ctx.eps, ctx.operations = eps, operations
        return operations.norm(x, value, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, value = ctx.saved_tensors
        g = gradients[0].contiguous()
        gw = (normed_rows(x, ctx.eps)[0] * g).sum(0) if ctx.needs_input_grad[1] else None
        gx = ctx.operations.norm_backward(g, x, value, ctx.eps, None) if ctx.needs_input_grad[0] else None
        return gx, gw, None, None, None
