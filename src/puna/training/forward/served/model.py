"""`ServedForward`: the values of the native runtime, which serves the model, with the gradients of `FusedForward`.

The native runtime computes the forward pass from the files of the model, with the current adapter, as `LLM` does. The
input of each layer is kept, from which the backward pass computes the layer again in PyTorch: roundings of activations
in the native kernels count as the identity (straight-through).

Legend: T tokens of all documents, D hidden, L layers, S supervised tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.adapters.runtime import runtime_changes
from puna.backend import Outputs, token_losses
from puna.checkpoint import locate_model, open_checkpoint
from puna.errors import ConfigError
from puna.native.backend import NativeBackend
from puna.native.recording import forward_with_states
from puna.native.sampling import logprob_values
from puna.training.batch import Batch
from puna.training.forward.fused.matrices import product_with_rows
from puna.training.forward.fused.model import FusedForward
from puna.training.forward.fused.operations import TorchOperations
from puna.training.forward.fused.products import product_dtype
from puna.training.forward.rows import Supervised, without_last
from puna.training.forward.served.pieces import Piece, pieces
from puna.training.forward.served.support import unserved
from puna.training.methods.base import Trainable

PIECE_TOKENS = 512
"""Maximum tokens of a native pass, as in a step of the engine."""

PIECE_BYTES = 64 << 20
"""Maximum size of the logits of a native pass."""


class ServedForward:
    """Computes losses whose log-probabilities have the bits of those that `LLM` returns for the same tokens.

    They are those of a generated token and of `prompt_logprobs`, with the default type and format of `LLM`: the type of
    the model in training matters only for the gradients.

    Args:
        trainable: the model, which was loaded from a file, and its trainable parameters.
        noise: NEFTune's alpha, which must be 0.

    Raises:
        ConfigError: the method or the model is not implemented.
        BackendError: the native runtime does not support the model, or it does not fit in memory.
    """

    name = "served"

    def __init__(self, trainable: Trainable, noise: float = 0.0) -> None:
        missing = unserved(trainable, noise)
        if missing is not None:
            raise ConfigError(f"forward is 'served', which does not implement {missing}; set forward to 'auto'")
        checkpoint = open_checkpoint(locate_model(trainable.base))
        if checkpoint.head != "lm":
            raise ConfigError(
                f"forward is 'served', but {checkpoint.path} has no language-model head; set forward to 'auto'"
            )
        self.trainable, self.training = trainable, True
        self._tensors = checkpoint.tensors
        self._backend = NativeBackend(checkpoint.config, checkpoint.tensors, torch.get_num_threads())
        self._fused = FusedForward(trainable)
        self._dtype = trainable.model.dtype
        self._adapter, self._version = 0, -1

    def hidden(self, batch: Batch) -> Tensor:
        """Returns the hidden states after the final norm, (T, D) float32."""
        run = _Run(self, batch)
        states = torch.from_numpy(np.concatenate([outputs.hidden for _, outputs in run.passes("hidden")]))
        if not torch.is_grad_enabled():
            return states
        out: Tensor = _Replaced.apply(self._fused.hidden(batch, run.layer_outputs), states)  # type: ignore[no-untyped-call]
        return out

    def losses(self, batch: Batch, scale: float) -> Tensor:
        """Returns the scalar sum over i of weights[i] * CE[i] * scale, float32."""
        batch, tokens = without_last(batch) if min(batch.lengths) > 1 else (batch, Supervised.of(batch))
        run = _Run(self, batch, tokens)
        total, gradients = 0.0, torch.zeros(len(tokens.rows), run.width, dtype=self._dtype)
        factors = tokens.weights * scale
        for part, logits in run.logits():
            logprobs = logprob_values(logits, tokens.targets[part].numpy(), self._backend.native_model)
            total -= float(logprobs @ factors[part].double().numpy())
            if run.recording:
                gradients[part] = self._gradient(logits, tokens.targets[part], factors[part])
        if not run.recording:
            return torch.tensor(total, dtype=torch.float32)
        hidden = self._fused.hidden(batch, run.layer_outputs)
        out: Tensor = _Loss.apply(hidden, total, gradients, tokens.rows)  # type: ignore[no-untyped-call]
        return out

    @torch.no_grad()
    def log_probabilities(self, batch: Batch, exact: bool = False) -> NDArray[np.float64]:
        """Returns the log-probabilities of the supervised tokens of a batch, (S,).

        Args:
            exact: compute the softmax in float64, as `LLM.nll` and `LLM.score`, and not as for generated tokens.
        """
        tokens = Supervised.of(batch)
        result = np.empty(len(tokens.rows))
        for part, logits in _Run(self, batch, tokens).logits():
            targets = tokens.targets[part].numpy()
            result[part] = -token_losses(logits, targets)[0] if exact else logprob_values(logits, targets)
        return result

    def _gradient(self, logits: NDArray[np.float32], targets: Tensor, factors: Tensor) -> Tensor:
        """Returns the gradient of the hidden states, (rows, D), of the sum of factors * CE; overwrites the logits."""
        values = torch.from_numpy(logits)
        TorchOperations().cross_entropy(values, targets, factors, True)
        return product_with_rows(values.to(product_dtype(self._dtype)), self._fused.head()[1])

    def load_adapter(self) -> int:
        """Loads the current values of the parameters into the native runtime; returns the number of the adapter."""
        if self._version != self.trainable.version:
            adapter = self.trainable.adapter()
            assert adapter is not None, "a method without an adapter trains the model's own weights"
            products = runtime_changes(adapter, self._tensors, False).products
            if self._adapter:
                self._backend.drop_adapter(self._adapter)
            self._adapter, self._version = self._backend.load_adapter(products), self.trainable.version
        return self._adapter


@dataclass
class _Run:
    """The native passes of a batch."""

    forward: ServedForward
    batch: Batch
    tokens: Supervised | None = None

    def __post_init__(self) -> None:
        config, lengths = self.forward._backend.config, self.batch.lengths
        if max(lengths) > config.context_length:
            raise ConfigError(
                f"a document has {max(lengths)} tokens, but the context of the model is {config.context_length}; lower "
                "max_length"
            )
        self.width, layers = config.hidden_size, config.num_hidden_layers
        self.recording = torch.is_grad_enabled()
        shape = (layers, sum(lengths), self.width) if self.recording else (0,)
        self.layer_outputs = torch.empty(shape, dtype=self.forward._dtype)

    def logits(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yields the logits of the supervised tokens in parts, and the indices of these tokens."""
        assert self.tokens is not None
        rows = self.tokens.rows.numpy()
        for piece, outputs in self.passes("logits"):
            part = slice(*np.searchsorted(rows, [piece.first, piece.end]).tolist())
            if part.start == part.stop:
                continue
            ends = [*piece.starts[1:], piece.end]
            positions = np.concatenate(
                [np.arange(end - chunk.rows, end) for chunk, end in zip(piece.chunks, ends, strict=True)]
            )
            yield part, outputs.logits[np.searchsorted(positions, rows[part])]

    def passes(self, output: Literal["logits", "hidden"]) -> Iterator[tuple[Piece, Outputs]]:
        """Runs the passes; records the outputs of the layers if gradients are needed."""
        forward, backend = self.forward, self.forward._backend
        size = min(PIECE_TOKENS, max(16, PIECE_BYTES // (4 * backend.config.vocab_size)))
        adapter = forward.load_adapter()
        for piece in pieces(self.batch.ids, self.batch.lengths, size, backend.pages, adapter):
            chunks = [
                replace(chunk, rows=self._rows(start, len(chunk.tokens)), output=output)
                for chunk, start in zip(piece.chunks, piece.starts, strict=True)
            ]
            piece = replace(piece, chunks=tuple(chunks))
            if self.recording:
                outputs, states = forward_with_states(backend, chunks)
                self.layer_outputs[:, piece.first : piece.end] = torch.from_numpy(states[1:])
                yield piece, outputs
            else:
                yield piece, backend.forward(chunks)

    def _rows(self, start: int, count: int) -> int:
        """Returns the number of final tokens of a chunk whose output is needed: from the first supervised one on."""
        if self.tokens is None:
            return count
        rows = self.tokens.rows.numpy()
        index = int(np.searchsorted(rows, start))
        return start + count - int(rows[index]) if index < len(rows) and rows[index] < start + count else 0


class _Replaced(torch.autograd.Function):
    """The values of a tensor, with the gradient of another one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class _Loss(torch.autograd.Function):
    """A loss whose gradient for rows of the hidden states was formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, total: float, gradients: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(gradients, rows)
        ctx.tokens = len(hidden)
        return torch.tensor(total, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows_gradient, rows = ctx.saved_tensors
        full = rows_gradient.new_zeros(ctx.tokens, rows_gradient.shape[1])
        full[rows] = rows_gradient * gradients[0].to(rows_gradient.dtype)
        return full, None, None, None
