"""LoRA and its variants rsLoRA and DoRA, over a float model or over one whose matrices are packed (QLoRA).

Legend: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from puna.adapters import Adapter, LowRank
from puna.adapters.torch_hooks import find_module
from puna.checkpoint.names import EMBEDDING, HEAD
from puna.errors import ConfigError, show_bytes
from puna.model.quantized import PackedMatrix
from puna.native.memory import available_memory
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import derived_seed
from puna.training.methods.attach import (
    attach_low_rank,
    attach_token_rows,
    is_tied,
    matrix_rows,
    row_norms,
    trainable_parameter,
)
from puna.training.methods.base import VALUE_BYTES, LowRankParameters, Method, Trainable
from puna.training.methods.targets import pattern_table, select_matrices, train_saved
from puna.training.settings import TrainingSettings

_TENSORS = 4
"""A value, its gradient and AdamW's moments."""


class Lora(Method):
    """Low-rank changes of matrices; by default of all linear layers."""

    name = "lora"
    kind = "lora"
    options = frozenset(
        {
            "adapter", "layers", "modules_to_save", "targets", "exclude", "rank", "alpha", "dropout", "rank_pattern",
            "alpha_pattern", "rslora", "dora", "trainable_tokens", "quantized",
        }
    )  # fmt: skip

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds the changes of the matrices, the rows of tokens and the modules that train completely."""
        changes = _new_changes(trainable, settings) if start is None else _copies(start)
        for name, change in changes.items():
            module = name.removesuffix(".weight")
            a = trainable_parameter(trainable, f"{module}.lora_A.weight", change["a"])
            b = trainable_parameter(trainable, f"{module}.lora_B.weight", change["b"])
            magnitude = change["magnitude"]
            if magnitude is not None:
                magnitude = trainable_parameter(trainable, f"{module}.lora_magnitude_vector", magnitude)
            attach_low_rank(trainable, name, LowRankParameters(a, b, change["scale"], magnitude, settings.dropout))
        _train_tokens(trainable, settings, start)
        train_saved(trainable, settings, start)


class Qlora(Lora):
    """LoRA over a model whose matrices stay in the packed format of its file."""

    name = "qlora"
    keep_quantized = True

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds what LoRA adds; raises ConfigError if no matrix of the model is packed."""
        if not any(isinstance(module, PackedMatrix) for module in trainable.model.modules()):
            raise ConfigError(
                "the method qlora needs a model with packed matrices, such as a GGUF file in Q4_K_M; choose the method "
                "lora, or quantize the model with: puna convert --quantize"
            )
        super().build(trainable, tokenizer, settings, start)


def _new_changes(trainable: Trainable, settings: TrainingSettings) -> dict[str, dict[str, Any]]:
    """Returns the initial values of each change: a uniform, as in PEFT, and b zero."""
    shapes = select_matrices(trainable, settings, settings.targets or "all-linear")
    ranks = pattern_table("rank_pattern", settings.rank_pattern, settings.rank, shapes)
    alphas = pattern_table("alpha_pattern", settings.alpha_pattern, settings.alpha, shapes)
    _check_memory(sum(ranks[name] * sum(shape) for name, shape in shapes.items()), max(ranks.values()))
    changes: dict[str, dict[str, Any]] = {}
    for index, (name, (outputs, inputs)) in enumerate(shapes.items()):
        rank = ranks[name]
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, index))
        a = torch.empty(rank, inputs).uniform_(-1, 1, generator=generator) / math.sqrt(inputs)
        b, scale = torch.zeros(outputs, rank), alphas[name] / (math.sqrt(rank) if settings.rslora else rank)
        magnitude: Tensor | None = None
        if settings.dora:
            device = trainable.model.device
            magnitude = row_norms(find_module(trainable.model, name), a.to(device), b.to(device), scale)
        changes[name] = {"a": a, "b": b, "scale": scale, "magnitude": magnitude}
    return changes


def _check_memory(trained: int, rank: int) -> None:
    """Raises ConfigError if the memory that is available is not enough for a number of trained parameters."""
    needed, available = trained * _TENSORS * VALUE_BYTES, available_memory()
    if available is not None and needed > available:
        raise ConfigError(
            f"rank {rank:,} needs {show_bytes(needed)} of memory for {trained:,} parameters, but "
            f"{show_bytes(available)} is available; lower rank, or change fewer matrices (targets, layers)"
        )


def _copies(start: Adapter) -> dict[str, dict[str, Any]]:
    """Returns the values of an adapter as initial values."""
    return {name: _copy(start, name, change) for name, change in start.low_rank.items()}


def _copy(start: Adapter, name: str, change: LowRank) -> dict[str, Any]:
    if change.bias is not None or name == EMBEDDING:
        part = "a change of the embedding" if name == EMBEDDING else "lora_bias"
        raise ConfigError(
            f"the adapter {start.path} has {part}, which puna does not train; merge the adapter with `puna merge` and "
            "train a new one"
        )
    magnitude = None if change.magnitude is None else torch.from_numpy(change.magnitude)
    a, b = torch.from_numpy(change.a), torch.from_numpy(change.b)
    return {"a": a, "b": b, "scale": change.scale, "magnitude": magnitude}


def _train_tokens(trainable: Trainable, settings: TrainingSettings, start: Adapter | None) -> None:
    """Trains rows of the embedding, which a tied head shares; those of an adapter that the training starts from."""
    model = trainable.model
    if start is not None and start.token_rows:
        tokens = start.token_rows.get(EMBEDDING)
        if tokens is None or (HEAD in start.token_rows and not is_tied(trainable)):
            raise ConfigError(
                f"the adapter {start.path} has its own rows of the head, which puna does not train; merge the adapter "
                "with `puna merge` and train a new one"
            )
        ids, values = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.values)
    elif settings.trainable_tokens:
        ids = torch.tensor(sorted(set(settings.trainable_tokens)))
        if int(ids[-1]) >= model.config.vocab_size:
            raise ConfigError(
                f"trainable_tokens has {int(ids[-1])}; the vocabulary has the tokens 0 to {model.config.vocab_size - 1}"
            )
        values = matrix_rows(model.get_input_embeddings(), ids.to(model.device))
    else:
        return
    rows = trainable_parameter(trainable, "model.embed_tokens.token_adapter.trainable_tokens_delta", values)
    for name in (EMBEDDING, HEAD) if is_tied(trainable) else (EMBEDDING,):
        attach_token_rows(trainable, name, ids.to(model.device), rows)
