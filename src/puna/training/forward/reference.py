"""`ReferenceForward`: the readable forward pass. It calls the modules of the model, which implements every method.

Legend: T tokens of all documents, D hidden, B documents of equal length, N virtual tokens, L layers, S supervised rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from puna.training.batch import Batch
from puna.training.forward.float_products import float_products
from puna.training.forward.rows import Supervised, decoder_of, positions, prepend, remove, with_noise
from puna.training.memory import return_free_memory
from puna.training.methods.base import Trainable

CHUNK_LOGITS = 1 << 23
"""Maximum number of logits that exist at the same time: 32 MB in float32."""


def chunk_rows(vocabulary: int) -> int:
    """Returns the number of rows of logits that exist at the same time."""
    return max(1, CHUNK_LOGITS // vocabulary)


class ReferenceForward:
    """Calls the model's modules with autograd; a batch is one row, in which positions restart at each document.

    Args:
        trainable: the model and its trainable parameters.
        checkpointing: recompute the activations of each layer in the backward pass.
        noise: NEFTune's alpha; 0 for no noise.
    """

    name = "reference"

    def __init__(self, trainable: Trainable, checkpointing: bool = False, noise: float = 0.0) -> None:
        self.trainable, self.training = trainable, True
        self._decoder = decoder_of(trainable)
        self._checkpointing, self._noise = checkpointing, noise

    def hidden(self, batch: Batch) -> Tensor:
        """Returns the hidden states after the final norm, (T, D), in the type of the model."""
        self._decoder._gradient_checkpointing = self._checkpointing
        self._decoder._gradient_checkpointing_func = self._checkpoint(batch)
        self._decoder.train(self.training)
        with self._computing(batch):
            prefix = self.trainable.prefix
            return self._packed(batch) if prefix is None else self._with_prefix(batch, prefix)

    def losses(self, batch: Batch, scale: float) -> Tensor:
        """Returns the scalar sum over i of weights[i] * CE[i] * scale, float32."""
        hidden, tokens = self.hidden(batch), Supervised.of(batch)
        return_free_memory()
        total = hidden.sum() * 0.0  # keeps the gradient function if no token is supervised
        head = self.trainable.model.get_output_embeddings()
        assert head is not None, "only language models have losses of tokens"
        size = chunk_rows(self.trainable.model.config.vocab_size)

        def chunk_loss(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            return F.cross_entropy(head(states).float(), targets, reduction="none") @ weights

        recomputed = self._checkpoint(batch)
        with self._computing(batch):
            for part in torch.split(torch.arange(len(tokens.rows)), size):
                total = total + recomputed(
                    chunk_loss, hidden[tokens.rows[part]], tokens.targets[part], tokens.weights[part]
                )
        return total.float() * scale

    @contextmanager
    def _computing(self, batch: Batch) -> Iterator[None]:
        """Uses the dropout of the batch, and products in the fastest type."""
        seeds = batch.seeds if self.training else None
        with self.trainable.dropping(seeds, batch.lengths), float_products(self.trainable.model.dtype):
            yield

    def _checkpoint(self, batch: Batch) -> Callable[..., Any]:
        """Returns `checkpoint`, whose recomputation drops the same elements as the forward pass."""
        return partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), self._computing(batch)))

    def _embedded(self, batch: Batch) -> Tensor:
        """Returns the embeddings of the tokens, (T, D)."""
        x = self._decoder.embed(torch.from_numpy(batch.ids)[None])[0]
        return with_noise(x, batch, self._noise) if self.training and self._noise else x

    def _packed(self, batch: Batch) -> Tensor:
        """Computes all documents as one row. The virtual tokens of a prompt precede each document."""
        prompt = self.trainable.prompt
        count = 0 if prompt is None else len(prompt)
        x = prepend(self._embedded(batch), batch.lengths, prompt)
        place = positions(tuple(count + length for length in batch.lengths))
        out = self._decoder(inputs_embeds=x[None], position_ids=place[None], use_cache=False).last_hidden_state[0]
        return remove(out, batch.lengths, count)

    def _with_prefix(self, batch: Batch, prefix: Tensor) -> Tensor:
        """Computes documents of equal length as rows, since the model allows no cache for several documents in a row.

        `prefix` is (L, 2, K, N, E); the text follows it, at positions N, N + 1, ...
        """
        documents = torch.split(self._embedded(batch), list(batch.lengths))
        results: dict[int, Tensor] = {}
        for length in sorted(set(batch.lengths)):
            members = [index for index, other in enumerate(batch.lengths) if other == length]
            x = torch.stack([documents[index] for index in members])  # (B, length, D)
            cache = prefix.to(self.trainable.model.dtype)[:, :, None].expand(-1, -1, len(x), -1, -1, -1)
            place = positions((length,), prefix.shape[3])[None].expand(len(x), -1)
            pairs = tuple((keys, values) for keys, values in cache)
            out = self._decoder(inputs_embeds=x, position_ids=place, past_key_values=pairs, use_cache=False)
            results.update(zip(members, out.last_hidden_state, strict=True))
        return torch.cat([results[index] for index in range(len(documents))])
