"""Traces of training programs in the tensors of a model: wrappers' prefixes, adapters, and tensors without effect.

A model that is saved inside a wrapper (DDP, FSDP, `torch.compile`, PEFT, trl) has names such as
`module._orig_mod.model.norm.weight`. The wrapper does not change the model, so its parts of the names are removed.
Adapters that were not merged do change the model and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from puna.checkpoint.names import is_ignored
from puna.errors import CheckpointError, show

T = TypeVar("T")

_INNER = re.compile(
    r"(?:(?<=\.)|^)"
    r"(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|base_layer)\."
)
"""Parts of names that wrappers of single layers add anywhere in a name. No module of a LLaMA model has such a name."""

_VALUE_HEAD = re.compile(r"(^|\.)(v_head|value_head)\.")
"""The head of reinforcement learning with trl or OpenRLHF. It estimates rewards; the logits do not depend on it."""

_ADAPTER = re.compile(
    r"(^|\.)(lora_\w+|modules_to_save|ia3_l|hada_\w+|lokr_\w+|oft_\w+|vera_\w+|adapter_\w+|prompt_encoder)(\.|$)"
)
"""Names of PEFT's parameters."""


def plain_names(tensors: Mapping[str, T], embeddings: Iterable[str]) -> tuple[dict[str, T], list[str]]:
    """Returns the tensors by the names that they had before the model was wrapped, and notes for the user.

    Args:
        embeddings: possible names of the embedding, in order of preference. A text that precedes this name and all
            other names is a wrapper's prefix.

    Raises:
        CheckpointError: the tensors contain adapters, or two of them have the same name.
    """
    weights = {name: tensor for name, tensor in tensors.items() if not is_ignored(name)}
    notes = dropped_note("cached rotary values", tensors.keys() - weights.keys())
    heads = {name for name in weights if _VALUE_HEAD.search(name)}
    notes += dropped_note("a value head of reinforcement learning", heads)
    _refuse_adapters(weights)
    shortened = {name: _INNER.sub("", name) for name in weights if name not in heads}
    prefix = _prefix(shortened.values(), embeddings)
    plain: dict[str, str] = {}
    for name, shorter in shortened.items():
        if (earlier := plain.setdefault(shorter.removeprefix(prefix), name)) != name:
            raise CheckpointError(
                f"tensors {show(earlier)} and {show(name)} differ only in the parts that wrappers of training "
                "programs add to names; delete one of them"
            )
    parts = sorted({f"{part}." for name in shortened for part in _INNER.findall(name)} | ({prefix} - {""}))
    if parts:
        notes.append(f"left out of names: {', '.join(parts)[:200]} of a wrapper that saved the model")
    return {new: weights[old] for new, old in plain.items()}, notes


def dropped_note(description: str, names: Iterable[str]) -> list[str]:
    """Returns a note on tensors that have no effect; no note if there are none."""
    listed = sorted(names)
    if not listed:
        return []
    count = f"{len(listed)} tensors" if len(listed) > 1 else "1 tensor"
    return [f"{count} with {description} ignored, such as {show(listed[0])}"]


def _prefix(names: Iterable[str], embeddings: Iterable[str]) -> str:
    """Returns the text that precedes the name of the embedding and every other name; "" if there is none."""
    names = list(names)
    for embedding in embeddings:
        for name in names:
            prefix = name.removesuffix(embedding)
            if name == embedding or (prefix != name and prefix.endswith(".")):
                return prefix if all(other.startswith(prefix) for other in names) else ""
    return ""


def _refuse_adapters(names: Iterable[str]) -> None:
    adapters = [name for name in names if _ADAPTER.search(name)]
    if adapters:
        raise CheckpointError(
            f"the files contain adapters that were not merged into the weights: {len(adapters)} tensors, such as "
            f"{show(adapters[0])}. Merge them with PEFT (`model.merge_and_unload()`) and save the result"
        )
