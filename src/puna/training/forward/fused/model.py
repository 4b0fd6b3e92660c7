"""`FusedForward`: the fast forward pass of training, for methods that change or add to the weights of matrices.

Legend: T tokens of all documents, D hidden, N virtual tokens, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from puna.model.llama import LlamaDecoderLayer, LlamaRMSNorm
from puna.model.quantized import QuantLinear
from puna.model.rope import angles
from puna.training.batch import Batch
from puna.training.forward.fused.attention import Attention, attention_for
from puna.training.forward.fused.head import cross_entropy
from puna.training.forward.fused.layer import FusedLayer, Pass
from puna.training.forward.fused.matrices import dequantize
from puna.training.forward.fused.operations import Operations, normed_rows, operations_for
from puna.training.forward.fused.projection import master_of
from puna.training.forward.rows import Supervised, decoder_of, positions, prepend, remove, with_noise, without_last
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
    """

    name = "fused"

    def __init__(self, trainable: Trainable, checkpointing: bool = False, noise: float = 0.0) -> None:
        self.trainable, self.training = trainable, True
        self._checkpointing, self._noise = checkpointing, noise
        model = trainable.model
        self._decoder = decoder_of(trainable)
        self._dtype = model.dtype
        self._operations = operations_for(self._dtype)
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
        prompt = self.trainable.prompt
        x = self._embeddings(batch)
        x = with_noise(x, batch, self._noise) if self.training and self._noise else x
        x = prepend(x, batch.lengths, prompt)
        count = 0 if prompt is None else len(prompt)
        lengths, seeds = tuple(count + length for length in batch.lengths), batch.seeds
        tokens = len(x)
        missing = -tokens % _UNIT if outputs is None and len(set(lengths)) > 1 else 0
        if missing:
            x = nn.functional.pad(x, (0, 0, 0, missing))
            lengths, seeds = (*lengths, missing), (*seeds, 0)
        rotary = self._decoder.rotary_emb
        cos, sin = (part[0, 0] for part in angles(positions(lengths)[None], rotary.inv_freq, rotary.scaling))
        current = Pass(
            self._attention(lengths),
            self._operations,
            cos,
            sin,
            seeds if self.training else None,
            lengths,
            self._checkpointing,
        )
        for index, layer in enumerate(self._layers):
            x = layer(x, current, None if outputs is None else outputs[index])
        return remove(self._normed(x)[:tokens], batch.lengths, count)

    def losses(self, batch: Batch, scale: float) -> Tensor:
        """Returns the scalar sum over i of weights[i] * CE[i] * scale, float32."""
        weight, value = self.head()
        tokens = Supervised.of(batch)
        random = self.trainable.low_rank or self._noise  # dropout and noise depend on the number of tokens
        if not random and min(batch.lengths) > 1:
            batch, tokens = without_last(batch)
        return cross_entropy(self.hidden(batch), weight, tokens, scale, value, self._operations)

    def head(self) -> tuple[Tensor, Tensor]:
        """Returns the parameter that receives the gradient of the head, (V, D), and its values in the model's type."""
        head = self.trainable.model.get_output_embeddings()
        assert head is not None, "only language models have losses of tokens"
        if isinstance(head, QuantLinear):
            value = dequantize([head.packed], self._dtype)
            return value, value
        return self._master(head.weight), head.weight.detach().to(self._dtype)

    def _attention(self, lengths: tuple[int, ...]) -> Attention:
        config = self.trainable.model.config
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return attention_for(self._dtype, lengths, *heads)

    def _embeddings(self, batch: Batch) -> Tensor:
        ids, module = torch.from_numpy(batch.ids), self._decoder.embed_tokens
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
