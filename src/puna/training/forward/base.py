"""`Forward`: the interface of the forward passes that tasks compute losses with.

Legend: T tokens of all documents of a batch, D hidden.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from puna.training.batch import Batch


class Forward(Protocol):
    """A forward pass with gradients for the trainable parameters.

    Documents of a batch do not see each other, and positions restart in each. Virtual tokens of a prompt or a prefix
    are added inside, and removed from the results. Random numbers (dropout, noise) depend on `batch.seeds` alone, and
    only occur while `training` is True.
    """

    name: str
    """Describes the implementation, for the user."""
    training: bool

    def hidden(self, batch: Batch) -> Tensor:
        """Returns the hidden states after the final norm, (T, D), in the type of the computation."""
        ...

    def losses(self, batch: Batch, scale: float) -> Tensor:
        """Returns the scalar sum over i of weights[i] * CE[i] * scale, float32, ready for `backward()`.

        CE[i] is the cross-entropy (nats) of predicting ids[i]. The logits of all tokens never exist at the same time;
        unsupervised tokens have none. Without gradients (`torch.no_grad()`) only the value is computed.
        """
        ...
