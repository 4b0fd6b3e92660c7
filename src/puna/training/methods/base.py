"""`Trainable`: a model with the parameters that train. `Method` attaches them.

Legend: R rank, I inputs and O outputs of a matrix, D hidden, N virtual tokens, L layers, K kv heads, E head width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from puna.adapters import Adapter
from puna.adapters.adapter import Kind
from puna.model.pretrained import LlamaPreTrainedModel
from puna.tokenizer.base import TokenizerBase
from puna.training.batch import derived_seed

Feature = Literal[
    "low_rank", "magnitude", "dropout", "scalings", "bottlenecks", "token_rows", "prompt", "prefix", "weights"
]
"""A property of a method that a forward pass must implement, unless it calls the modules with their hooks.

"magnitude" and "dropout" are those of low-rank changes; "weights" are parameters of the model itself.
"""


@dataclass(frozen=True)
class LowRankParameters:
    """The change of a matrix W (O, I) to W + scale b a, of which a and b train.

    Attributes:
        a: (R, I) float32.
        b: (O, R) float32.
        scale: a constant.
        magnitude: with DoRA, the norms (O,) that the rows of the changed matrix are scaled to, else None. Gradients do
            not flow through the norms of the changed matrix.
        dropout: the probability of dropping an element of the input of `a`.
    """

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    magnitude: nn.Parameter | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class ScalingParameters:
    """Factors of a layer's inputs (I,) or outputs (O,), float32."""

    factors: nn.Parameter
    side: Literal["inputs", "outputs"]


class Trainable:
    """A model with the parameters that train; everything else in it is frozen.

    Forward hooks apply the changes, so that every call of the model's modules includes them. Only virtual tokens are
    added by the caller or by a call of the complete model.

    Attributes:
        model: the model. Its frozen parameters have `requires_grad` False.
        kind: the kind of the resulting adapter; None if the result is the model itself.
        base: the name or path of the base model, recorded in the adapter.
        parameters: float32 values by name, which the optimizer changes. Together they are the state of the method. An
                optimizer may replace `parameter.data` by a view of a larger tensor.
        low_rank, scalings: the changes of matrices, by Hugging Face's name of the matrix.
        token_rows: (n, D) new rows of an embedding or head by the name of the matrix, and the ids of their tokens.
        virtual: computes the soft prompt (N, D), or the prefix (L, 2, K, N, E), from the parameters.
        masters: for parameters of a model that is not in float32, by name: the float32 values and the parameter.
        seed: of the dropout in the current forward pass; None without dropout.
    """

    def __init__(self, model: LlamaPreTrainedModel, kind: Kind | None) -> None:
        self.model, self.kind = model, kind
        self.base: str | None = model.config.name_or_path or None
        self.parameters: dict[str, nn.Parameter] = {}
        self.low_rank: dict[str, LowRankParameters] = {}
        self.scalings: dict[str, ScalingParameters] = {}
        self.token_rows: dict[str, tuple[Tensor, nn.Parameter]] = {}
        self.virtual: Callable[[], Tensor] | None = None
        self.masters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self.seed: int | None = None
        self._undo: list[Callable[[], None]] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                self.on_release(partial(parameter.requires_grad_, True))

    @property
    def features(self) -> frozenset[Feature]:
        """The properties that a forward pass must implement, unless it calls the modules with their hooks."""
        changes = self.low_rank.values()
        present: dict[Feature, bool] = {
            "low_rank": bool(changes),
            "magnitude": any(change.magnitude is not None for change in changes),
            "dropout": any(change.dropout > 0 for change in changes),
            "scalings": bool(self.scalings),
            "token_rows": bool(self.token_rows),
            "prompt": self.kind == "prompt",
            "prefix": self.kind == "prefix",
            "weights": any(parameter.requires_grad for parameter in self.model.parameters()),
        }
        return frozenset(name for name, value in present.items() if value)

    @property
    def prompt(self) -> Tensor | None:
        """The soft prompt, (N, D) float32, with its gradient function; None if there is none."""
        return self.virtual() if self.kind == "prompt" and self.virtual is not None else None

    @property
    def prefix(self) -> Tensor | None:
        """The keys (after RoPE) and values of each layer, (L, 2, K, N, E) float32; None if there are none."""
        return self.virtual() if self.kind == "prefix" and self.virtual is not None else None

    @contextmanager
    def dropping(self, seed: int | None) -> Iterator[None]:
        """Uses the dropout of a seed inside the block, such as `Batch.seed`; without the block, nothing is dropped.

        The mask of a layer depends on nothing but the seed and the layer, so that recomputed activations are equal.
        """
        before, self.seed = self.seed, seed
        try:
            yield
        finally:
            self.seed = before

    def dropout_mask(self, index: int, x: Tensor, probability: float) -> Tensor | None:
        """Returns the factors of the elements of x, 0 or 1 / (1 - probability), of the index-th layer."""
        if self.seed is None or probability == 0:
            return None
        generator = torch.Generator(x.device).manual_seed(derived_seed(self.seed, index))
        kept = torch.empty(x.shape, device=x.device).bernoulli_(1 - probability, generator=generator)
        return kept.div_(1 - probability)

    def after_step(self) -> None:
        """Copies the float32 values to the parameters of a model in another type; call it after each change of them."""
        with torch.no_grad():
            for master, parameter in self.masters.values():
                parameter.copy_(master)

    def adapter(self) -> Adapter | None:
        """Returns the trained adapter, whose arrays are copies; None if the result is the model itself."""
        raise NotImplementedError

    def on_release(self, undo: Callable[[], Any]) -> None:
        """Adds a function that `release` calls; the last one is called first."""
        self._undo.append(undo)

    def release(self) -> None:
        """Removes the changes from the model. Trained parameters of the model itself keep their values."""
        while self._undo:
            self._undo.pop()()


class Method(ABC):
    """A way to train a model: chooses and attaches the parameters.

    Attributes:
        name: the name in `METHODS`.
        options: the names of the settings of adapters that the method uses.
        keep_quantized: whether the model is loaded with `keep_quantized=True`.
    """

    name: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    keep_quantized: ClassVar[bool] = False

    @abstractmethod
    def attach(
        self, model: LlamaPreTrainedModel, tokenizer: TokenizerBase | None, settings: Any, start: Adapter | None = None
    ) -> Trainable:
        """Freezes the model and attaches the parameters of the method.

        Args:
            tokenizer: needed only for initial values from a text.
            settings: the settings of the run; random initial values depend only on its seed.
            start: an adapter whose values are the initial ones; it determines the settings that its shapes depend on.

        Raises:
            ConfigError: the settings do not fit the model.
        """

    def learning_rate(self, hidden: int) -> float:
        """Returns the learning rate for the setting "auto".

        The formula is that of LoRA for LLaMA models (tinker-cookbook, hyperparam_utils.py), fitted to hidden sizes from
        2048 to 8192; small models extrapolate it.
        """
        return 5e-4 * math.pow(2000 / hidden, 0.781)
