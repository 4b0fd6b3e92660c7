"""The tensors that an adapter's file must contain, according to its settings and the model's configuration.

PEFT names a tensor after the module that it changes: "base_model.model." + module + ".lora_A.weight", and so on. PEFT
only warns about missing tensors; puna compares the file with this list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from puna.adapters.adapter import Kind
from puna.adapters.patterns import is_target, matches, pattern_value
from puna.checkpoint.names import EMBEDDING, HEAD, expected_tensors
from puna.config import LlamaConfig
from puna.errors import CheckpointError, show

Part = Literal["a", "b", "magnitude", "bias", "factors", "rows", "replaced", "down", "down_bias", "up", "up_bias"]
HeadKind = Literal["lm", "classification"]


@dataclass(frozen=True)
class Slot:
    """A tensor of an adapter.

    Attributes:
        key: its name in the file, without "base_model.model.".
        part: what it holds.
        weight: Hugging Face's name of the tensor of the model that it changes.
        shape: the required shape.
        required: whether the adapter is incomplete without it.
    """

    key: str
    part: Part
    weight: str
    shape: tuple[int, ...]
    required: bool = True


def model_tensors(config: LlamaConfig, head: HeadKind) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the model's tensors by name, with the head even if it is tied."""
    shapes = dict(expected_tensors(config, head))
    return shapes | {HEAD: shapes[EMBEDDING]} if head == "lm" else shapes


def adapter_slots(kind: Kind, settings: Mapping[str, Any], config: LlamaConfig, head: HeadKind) -> list[Slot]:
    """Returns the tensors of an adapter without virtual tokens, and those that may be stored in addition.

    Raises:
        CheckpointError: the settings select no module, or tokens outside the vocabulary.
    """
    shapes = model_tensors(config, head)
    slots = list(_changes(kind, settings, config, shapes))
    tokens = list(_token_slots(kind, settings, config))
    if not slots and not tokens:
        layers = settings.get("layers_to_transform")
        numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
        if numbers and min(numbers) >= config.num_hidden_layers:
            raise CheckpointError(
                f"layers_to_transform is {show(layers)}, but the model has {config.num_hidden_layers} layers, numbered "
                "from 0. Use the adapter's base model"
            )
        targets = settings.get("target_parameters") or settings["target_modules"]
        raise CheckpointError(
            f"target_modules {show(targets)} select no module of a LLaMA; the adapter belongs to another architecture"
        )
    slots += [*tokens, *saved_slots(settings, config, shapes), *_base_layers(slots, config, shapes)]
    slots += _bias_slots(settings, slots, shapes)
    keys = {slot.key for slot in slots}
    return slots + [  # stored if the vocabulary was resized
        Slot(name, "replaced", name, shapes[name], required=False)
        for name in (EMBEDDING, HEAD)
        if name in shapes and name not in keys
    ]


def _changes(
    kind: Kind, settings: Mapping[str, Any], config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Slot]:
    """Yields the tensors of every targeted module."""
    if kind == "tokens":
        return
    modules = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    targets = [module for module in modules if _is_target(settings, module)]
    embedding, head = (name.removesuffix(".weight") for name in (EMBEDDING, HEAD))
    if settings.get("ensure_weight_tying") and config.tie_word_embeddings and embedding in targets:
        targets += [head] if HEAD in shapes and head not in targets else []
    for module in targets:
        outputs, inputs = shapes[f"{module}.weight"]
        if kind == "lora":
            yield from _low_rank(settings, module, outputs, inputs)
        elif kind == "bottleneck":
            yield from _network(settings, module, outputs)
        elif module != embedding:
            inner = settings["feedforward_modules"]
            is_inner = (
                matches("feedforward_modules", inner, module)
                if isinstance(inner, str)
                else module.endswith(tuple(inner))
            )
            yield Slot(f"{module}.ia3_l", "factors", f"{module}.weight", (1, inputs) if is_inner else (outputs, 1))


def _is_target(settings: Mapping[str, Any], module: str) -> bool:
    if str(settings["target_modules"]).lower() == "all-linear":
        excluded = settings.get("exclude_modules")
        return module.startswith("model.layers.") and not (excluded and matches("exclude_modules", excluded, module))
    return is_target(settings, module)


def _low_rank(settings: Mapping[str, Any], module: str, outputs: int, inputs: int) -> Iterator[Slot]:
    """Yields the two factors of a matrix, and DoRA's magnitudes or the bias."""
    weight, rank = f"{module}.weight", pattern_value(settings, "rank_pattern", module, settings.get("r", 8))
    if weight == EMBEDDING:  # PEFT stores the factors of the transposed matrix
        yield Slot(f"{module}.lora_embedding_A", "b", weight, (rank, outputs))
        yield Slot(f"{module}.lora_embedding_B", "a", weight, (inputs, rank))
    else:
        yield Slot(f"{module}.lora_A.weight", "a", weight, (rank, inputs))
        yield Slot(f"{module}.lora_B.weight", "b", weight, (outputs, rank))
        if settings.get("lora_bias"):
            yield Slot(f"{module}.lora_B.bias", "bias", weight, (outputs,))
    if settings.get("use_dora"):
        yield Slot(
            f"{module}.lora_magnitude_vector", "magnitude", weight, (inputs if weight == EMBEDDING else outputs,)
        )


def _network(settings: Mapping[str, Any], module: str, outputs: int) -> Iterator[Slot]:
    """Yields the four tensors of a bottleneck adapter."""
    width, weight = settings.get("bottleneck_size", 64), f"{module}.weight"
    yield Slot(f"{module}.bottleneck_down.weight", "down", weight, (width, outputs))
    yield Slot(f"{module}.bottleneck_down.bias", "down_bias", weight, (width,))
    yield Slot(f"{module}.bottleneck_up.weight", "up", weight, (outputs, width))
    yield Slot(f"{module}.bottleneck_up.bias", "up_bias", weight, (outputs,))


def _token_slots(kind: Kind, settings: Mapping[str, Any], config: LlamaConfig) -> Iterator[Slot]:
    for module, ids in token_ids(kind, settings, config).items():
        if max(ids, default=0) >= config.vocab_size:
            raise CheckpointError(
                f"the adapter trains token {max(ids)}, but the vocabulary has {config.vocab_size} tokens; the adapter "
                "belongs to another model"
            )
        part = "trainable_tokens_delta" if kind == "tokens" else "token_adapter.trainable_tokens_delta"
        is_shared = config.tie_word_embeddings and f"{module}.weight" == HEAD
        yield Slot(f"{module}.{part}", "rows", f"{module}.weight", (len(ids), config.hidden_size), not is_shared)


def token_ids(kind: Kind, settings: Mapping[str, Any], config: LlamaConfig) -> dict[str, list[int]]:
    """Returns the tokens whose rows are replaced, by module. With a tied head, its rows are those of the embedding."""
    ids = settings.get("token_indices" if kind == "tokens" else "trainable_token_indices") or []
    if kind == "tokens":
        names = [name.removesuffix(".weight") for name in (EMBEDDING, HEAD)]
        table = {name: ids for name in names if _is_target(settings, name)}
    else:
        entries = ids if isinstance(ids, dict) else {"embed_tokens": ids} if ids else {}
        table = {"lm_head" if name.endswith("lm_head") else "model.embed_tokens": ids for name, ids in entries.items()}
        unknown = [name for name in entries if name.rpartition(".")[2] not in ("embed_tokens", "lm_head")]
        if unknown:
            raise CheckpointError(
                f"trainable_token_indices names {show(unknown[0])}; a LLaMA has embed_tokens and lm_head"
            )
    if config.tie_word_embeddings and "model.embed_tokens" in table:
        table.setdefault("lm_head", table["model.embed_tokens"])
    return table


def saved_slots(
    settings: Mapping[str, Any], config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Slot]:
    """Yields the tensors of the modules that `modules_to_save` selects by the ends of their names."""
    ends = tuple(name for name in settings.get("modules_to_save") or () if name)
    if not ends:
        return
    saved = [name for name in shapes if any(module.endswith(ends) for module in _ancestors(name))]
    if settings.get("ensure_weight_tying") and config.tie_word_embeddings and EMBEDDING in saved:
        saved += [HEAD] if HEAD in shapes and HEAD not in saved else []
    yield from (Slot(name, "replaced", name, shapes[name]) for name in saved)


def _ancestors(name: str) -> list[str]:
    """Returns the modules that contain a tensor: "model.norm.weight" is in "model.norm" and "model"."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _base_layers(slots: list[Slot], config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Slot]:
    """Yields the matrices of a targeted embedding and head, which PEFT stores next to their changes."""
    for name in (EMBEDDING, HEAD):
        if any(slot.weight == name for slot in slots):
            key = name.removesuffix(".weight") + ".base_layer.weight"
            yield Slot(key, "replaced", name, shapes[name], required=False)


def _bias_slots(settings: Mapping[str, Any], slots: list[Slot], shapes: Mapping[str, tuple[int, ...]]) -> list[Slot]:
    """Returns the trained biases of the model itself (`bias`), which exist only if the model has biases."""
    kind = settings.get("bias", "none")
    modules = {slot.weight.removesuffix(".weight") for slot in slots if slot.part in ("a", "b")}
    biases = []
    for name, shape in shapes.items():
        module = name.removesuffix(".bias")
        if kind == "none" or module == name or (kind == "lora_only" and module not in modules):
            continue
        key = f"{module}.base_layer.bias" if module in modules else name
        biases.append(Slot(key, "replaced", name, shape))
    return biases
