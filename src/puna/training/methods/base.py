"""`Trainable`: a model with the parameters that train. `Method` attaches them.

Legend: R rank, I inputs and O outputs of a matrix, D hidden, N virtual tokens, L layers, K kv heads, E head width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from puna.adapters import Adapter, open_adapter
from puna.adapters.adapter import Activation, Bottleneck, Floats, Kind, LowRank, Scaling, TokenRows
from puna.checkpoint.names import SCORE
from puna.config import LlamaConfig
from puna.errors import ConfigError, show
from puna.formats.blocks import FORMATS, StoredTensor
from puna.model import LlamaPreTrainedModel
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import derived_seed
from puna.training.settings import TrainingSettings
from puna.training.settings.adapters import AdapterSettings

VALUE_BYTES = 4
"""Bytes of a trained value; its gradient and each of AdamW's two moments have as many: all are float32."""

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


@dataclass(frozen=True)
class BottleneckParameters:
    """A network x + up(f(down(x) + down_bias)) + up_bias of the outputs x of a layer, float32.

    Attributes:
        down, down_bias: (R, O) and (R,).
        up, up_bias: (O, R) and (O,).
        activation: the name of f.
    """

    down: nn.Parameter
    down_bias: nn.Parameter
    up: nn.Parameter
    up_bias: nn.Parameter
    activation: Activation


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
        low_rank, scalings, bottlenecks: the changes of layers, by Hugging Face's name of the matrix.
        token_rows: by the name of an embedding or head, the ids of tokens (n,) and their rows (n, D).
        saved: names of the parameters that replace tensors of the model completely.
        virtual: computes the soft prompt (N, D), or the prefix (L, 2, K, N, E), from the parameters.
        masters: for parameters of a model that is not in float32, by name: the float32 values and the parameter.
        version: number of calls of `after_step`: of changes of the parameters.
        seeds, lengths: of the documents in the current forward pass, for dropout; seeds is None without dropout.
    """

    def __init__(self, model: LlamaPreTrainedModel, kind: Kind | None, base: str | None = None) -> None:
        self.model, self.kind, self.base = model, kind, base
        self.parameters: dict[str, nn.Parameter] = {}
        self.low_rank: dict[str, LowRankParameters] = {}
        self.scalings: dict[str, ScalingParameters] = {}
        self.bottlenecks: dict[str, BottleneckParameters] = {}
        self.token_rows: dict[str, tuple[Tensor, nn.Parameter]] = {}
        self.saved: list[str] = []
        self.virtual: Callable[[], Tensor] | None = None
        self.masters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self.seeds: tuple[int, ...] | None = None
        self.lengths: tuple[int, ...] = ()
        self.version = 0
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
            "bottlenecks": bool(self.bottlenecks),
            "token_rows": bool(self.token_rows),
            "prompt": self.kind == "prompt",
            "prefix": self.kind == "prefix",
            "weights": any(item.requires_grad for name, item in self.model.named_parameters() if name != SCORE),
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
    def dropping(self, seeds: tuple[int, ...] | None, lengths: tuple[int, ...] = ()) -> Iterator[None]:
        """Uses the dropout of `Batch.seeds` inside the block; without the block, nothing is dropped.

        The mask of a document in a layer depends on nothing but its seed and the layer, so that recomputed activations
        are equal, and the other documents of the batch do not matter.

        Args:
            lengths: tokens of each document. For inputs that are not the tokens of all documents, such as those of the
                head, the mask depends on the first seed.
        """
        before = self.seeds, self.lengths
        self.seeds, self.lengths = seeds, lengths
        try:
            yield
        finally:
            self.seeds, self.lengths = before

    def dropout_mask(self, index: int, x: Tensor, probability: float) -> Tensor | None:
        """Returns the factors of the elements of x, 0 or 1 / (1 - probability), of the index-th layer."""
        if self.seeds is None or probability == 0:
            return None
        kept = torch.empty(x.shape, device=x.device)
        rows = kept.view(-1, x.shape[-1])
        lengths = self.lengths if sum(self.lengths) == len(rows) else (len(rows),)
        for seed, part in zip(self.seeds, torch.split(rows, list(lengths)), strict=False):
            generator = torch.Generator(x.device).manual_seed(derived_seed(seed, index))
            part.bernoulli_(1 - probability, generator=generator)
        return kept.div_(1 - probability)

    def after_step(self) -> None:
        """Copies the float32 values to the parameters of a model in another type; call it after each change of them."""
        self.version += 1
        with torch.no_grad():
            for master, parameter in self.masters.values():
                parameter.copy_(master)

    def adapter(self) -> Adapter | None:
        """Returns the trained adapter, whose arrays are copies; None if the result is the model itself."""
        if self.kind is None:
            return None
        values = None if self.virtual is None else _array(self.virtual())
        return Adapter(
            Path("trained"),
            self.kind,
            self.model.config,
            base=self.base,
            head="classification" if self.model.head == "classification" else "lm",
            low_rank={
                name: LowRank(
                    _array(change.a), _array(change.b), change.scale,
                    None if change.magnitude is None else _array(change.magnitude),
                )
                for name, change in self.low_rank.items()
            },
            scalings={name: Scaling(_array(item.factors), item.side) for name, item in self.scalings.items()},
            bottlenecks={
                name: Bottleneck(
                    _array(item.down), _array(item.down_bias), _array(item.up), _array(item.up_bias), item.activation
                )
                for name, item in self.bottlenecks.items()
            },
            token_rows={
                name: TokenRows(ids.cpu().numpy().astype(np.intp), _array(rows))
                for name, (ids, rows) in self.token_rows.items()
            },
            replaced={name: _stored(name, self.parameters[name]) for name in self.saved},
            prompt=values if self.kind == "prompt" else None,
            prefix=values if self.kind == "prefix" else None,
        )  # fmt: skip

    def on_release(self, undo: Callable[[], Any]) -> None:
        """Adds a function that `release` calls; the last one is called first."""
        self._undo.append(undo)

    def release(self) -> None:
        """Removes the changes from the model. Trained parameters of the model itself keep their values."""
        while self._undo:
            self._undo.pop()()


def _array(tensor: Tensor) -> Floats:
    copy: Floats = tensor.detach().float().cpu().numpy().copy()
    return copy


def _stored(name: str, tensor: Tensor) -> StoredTensor:
    """Returns a tensor as one of a file, with a copy of its values."""
    array = _array(tensor)
    return StoredTensor(name, array.shape, FORMATS["f32"], array.reshape(-1).view(np.uint8))


class Method(ABC):
    """A way to train a model: chooses and attaches the parameters.

    Attributes:
        name: the name in `METHODS`.
        kind: the kind of the resulting adapter; None if the result is the model itself.
        options: the names of the settings of adapters that the method uses.
        keep_quantized: whether the model is loaded with `keep_quantized=True`.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind | None]
    options: ClassVar[frozenset[str]] = frozenset()
    keep_quantized: ClassVar[bool] = False

    def attach(
        self,
        model: LlamaPreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None = None,
    ) -> Trainable:
        """Freezes the model and attaches the parameters of the method.

        Args:
            tokenizer: needed only for initial values from a text.
            settings: the settings of the run; random initial values depend only on its seed.
            start: an adapter whose values are the initial ones, instead of that of `settings.adapter`. Its shapes take
                precedence over the settings.

        Raises:
            ConfigError: a setting does not fit the method or the model.
        """
        self._check_settings(settings)
        if start is None and settings.adapter is not None:
            start = open_adapter(settings.adapter, model.config)
        if start is not None and start.kind != self.kind:
            raise ConfigError(
                f"the adapter {start.path} is of the kind {start.kind}, which the method {self.name!r} cannot "
                "continue; choose the method of the adapter"
            )
        name = settings.model or model.name_or_path
        base = str(Path(name).resolve()) if name and Path(name).exists() else name
        trainable = Trainable(model, self.kind, base or None)
        try:
            self.build(trainable, tokenizer, settings, start)
        except BaseException:
            trainable.release()
            raise
        return trainable

    @abstractmethod
    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds the parameters to a model that is frozen; arguments as for `attach`."""

    def virtual_tokens(self, settings: TrainingSettings, config: LlamaConfig) -> int:
        """Returns the number of virtual tokens that will precede each text; 0 for most methods.

        Args:
            config: that of the model, which `settings.adapter` must fit.
        """
        if self.kind not in ("prompt", "prefix"):
            return 0
        if settings.adapter is None:
            return settings.virtual_tokens
        return open_adapter(settings.adapter, config).virtual_tokens

    def _check_settings(self, settings: TrainingSettings) -> None:
        """Raises ConfigError for a setting of another method that is not the default, since it would be ignored."""
        for item in fields(AdapterSettings):
            if item.name not in self.options and getattr(settings, item.name) != item.default:
                raise ConfigError(
                    f"{item.name} is {show(getattr(settings, item.name))}, but the method {self.name!r} does not use "
                    f"it; omit it, or choose another method. The method uses {', '.join(sorted(self.options))}"
                )

    def learning_rate(self, hidden: int) -> float:
        """Returns the learning rate for the setting "auto".

        The formula is that of LoRA for LLaMA models (tinker-cookbook, hyperparam_utils.py), fitted to hidden sizes from
        2048 to 8192; small models extrapolate it.
        """
        return 5e-4 * math.pow(2000 / hidden, 0.781)
