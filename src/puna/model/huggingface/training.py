"""Gradient checkpointing, and gradients of embedded tokens, with the signatures of every release of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from puna.errors import ArgumentError, RequestError, show
from puna.model.base import LlamaBase

_OPTIONS = {"use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"}
"""Arguments of `torch.utils.checkpoint.checkpoint`."""


def _require_grad(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    output.requires_grad_(True)


def _checkpoint_function(options: Mapping[str, Any], offload: bool) -> Callable[..., Any]:
    """Returns the function that calls a layer and recomputes it in the backward pass."""
    arguments = {"use_reentrant": False, **options}
    return partial(_offloaded if offload else checkpoint, **arguments)


def _offloaded(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Does the same as `checkpoint`, and keeps the inputs of the layer in the memory of the host."""
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(function, *inputs, **options)


class Training(LlamaBase):
    """Methods for training. The state of gradient checkpointing is in the decoder, for all models that share it."""

    supports_gradient_checkpointing = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._require_grads_hook: RemovableHandle | None = None
        self._required_by_checkpointing = False

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Saves memory in training by computing each layer again in the backward pass; forward returns no cache.

        Args:
            gradient_checkpointing_kwargs: arguments of `torch.utils.checkpoint.checkpoint`. `use_reentrant` is False by
                default. With True, the embedded tokens require gradients, as `enable_input_require_grads` makes them,
                because re-entrant checkpointing would otherwise lose all gradients if the embeddings are frozen.
            every_n_layers: only every n-th layer is computed again; the others keep their activations.
            offload: keep the inputs of the layers in the memory of the host.

        Raises:
            RequestError: if an argument is unknown or out of range.
        """
        if gradient_checkpointing_kwargs is not None and not isinstance(gradient_checkpointing_kwargs, Mapping):
            raise ArgumentError(
                f"gradient_checkpointing_kwargs is {show(gradient_checkpointing_kwargs)}; it must be a dictionary"
            )
        options = dict(gradient_checkpointing_kwargs or {})
        if unknown := sorted(options.keys() - _OPTIONS):
            raise RequestError(
                f"gradient_checkpointing_kwargs has the keys {unknown}; the keys must be arguments of "
                f"torch.utils.checkpoint.checkpoint: {', '.join(sorted(_OPTIONS))}"
            )
        if options.get("use_reentrant", False) not in (True, False):
            raise RequestError(f"use_reentrant is {show(options['use_reentrant'])}; it must be True or False")
        if options.get("use_reentrant") and self._require_grads_hook is None:
            self.enable_input_require_grads()
            self._required_by_checkpointing = True
        self._set_gradient_checkpointing(True, _checkpoint_function(options, offload), every_n_layers)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Does the same as `gradient_checkpointing_enable`; the name in later releases of transformers."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def _set_gradient_checkpointing(
        self,
        enable: bool | nn.Module = True,
        gradient_checkpointing_func: Callable[..., Any] | bool | None = None,
        every_n_layers: int = 1,
        value: bool | None = None,
    ) -> None:
        """Sets gradient checkpointing, with the signatures of 4.34, `(module, value)`, and of later releases.

        Args:
            enable: whether it is on; in 4.34, a module; modules other than `LlamaModel` are ignored.
            gradient_checkpointing_func: called with a layer and its inputs; in 4.34, whether it is on.
            every_n_layers: only every n-th layer is computed again.
            value: 4.34's name for whether it is on.
        """
        decoder: Any = self.get_decoder()
        if isinstance(enable, nn.Module):
            if enable is decoder:
                self.gradient_checkpointing = bool(gradient_checkpointing_func if value is None else value)
            return
        if isinstance(every_n_layers, bool) or not isinstance(every_n_layers, int) or every_n_layers < 1:
            raise RequestError(f"every_n_layers is {show(every_n_layers)}; it must be a whole number, 1 or more")
        if callable(gradient_checkpointing_func):
            decoder._gradient_checkpointing_func = gradient_checkpointing_func
        decoder._checkpointed_layers = every_n_layers
        self.gradient_checkpointing = bool(enable if value is None else value)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps the activations of all layers for the backward pass, which is the default."""
        self.gradient_checkpointing = False
        if self._required_by_checkpointing:
            self.disable_input_require_grads()

    def activation_checkpointing_disable(self) -> None:
        """Does the same as `gradient_checkpointing_disable`; the name in later releases of transformers."""
        self.gradient_checkpointing_disable()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on."""
        return bool(self.get_decoder()._gradient_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.get_decoder()._gradient_checkpointing = value

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Read-only alias of `gradient_checkpointing`."""
        return self.gradient_checkpointing

    @property
    def is_activation_checkpointing(self) -> bool:
        """Read-only alias of `gradient_checkpointing`; the name in later releases of transformers."""
        return self.gradient_checkpointing

    def _backward_compatibility_gradient_checkpointing(self) -> None:
        """Turns gradient checkpointing on if the configuration has this field, and removes it, as in transformers."""
        if not getattr(self.config, "gradient_checkpointing", False):
            return
        self.gradient_checkpointing_enable()
        vars(self.config).pop("gradient_checkpointing", None)

    def enable_input_require_grads(self) -> None:
        """Makes the embedded tokens require gradients, for training adapters with frozen embeddings."""
        self.disable_input_require_grads()
        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Reverts `enable_input_require_grads`."""
        self._required_by_checkpointing = False
        if self._require_grads_hook is not None:
            self._require_grads_hook.remove()
            self._require_grads_hook = None
