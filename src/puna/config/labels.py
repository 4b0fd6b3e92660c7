"""Facts about classification heads: `num_labels`, `id2label` and `label2id`, and the token whose state a head reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from puna.config.checks import check_whole
from puna.errors import ConfigError, show

_MAX_LABELS = 2**20


def read_labels(count: Any, id2label: Any, label2id: Any) -> tuple[dict[int, str], dict[str, Any]]:
    """Returns (id2label, label2id); if all arguments are None, two classes LABEL_0 and LABEL_1.

    A `count` that contradicts `id2label` is ignored, with a warning.

    Raises:
        ConfigError: if an argument is not a mapping, or the ids are not 0, 1, ...
    """
    ids = None if label2id is None else _read_ids(label2id)
    if id2label is not None:
        names = _read_names(id2label)
    elif ids is not None and count is None:
        names = _read_names({index: name for name, index in ids.items()})
    else:
        names = _default_names(2 if count is None else count)
    if count is not None and count != len(names):
        warnings.warn(
            f"num_labels={count} ignored, since id2label has {len(names)} entries; give one of them", stacklevel=5
        )
    return names, {name: index for index, name in names.items()} if ids is None else ids


def _default_names(count: Any) -> dict[int, str]:
    check_whole("num_labels", count)
    if count > _MAX_LABELS:
        raise ConfigError(f"num_labels is {count}; it must be at most {_MAX_LABELS}")
    return {index: f"LABEL_{index}" for index in range(count)}


def _read_names(id2label: Any) -> dict[int, str]:
    """Converts the keys, which are strings in JSON, to ints, and checks them."""
    try:
        names = {int(key): value for key, value in id2label.items()}
    except (AttributeError, TypeError, ValueError) as exc:
        raise ConfigError(f"id2label is {show(id2label)}; it must map whole numbers to names") from exc
    if not names or any(not isinstance(name, str) for name in names.values()):
        raise ConfigError(f"id2label is {show(id2label)}; it must map whole numbers to names")
    if names.keys() != set(range(len(names))):
        raise ConfigError(f"id2label has the ids {sorted(names)}; they must be 0 to {len(names) - 1}, each once")
    return names


def _read_ids(label2id: Any) -> dict[str, Any]:
    """Returns a copy; the ids are not used, so that any form of them is kept, such as texts."""
    if not isinstance(label2id, Mapping):
        raise ConfigError(f"label2id is {show(label2id)}; it must map names to whole numbers")
    return dict(label2id)


def last_token(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Returns the index of the token whose state is classified: the last one that is not padding.

    As in transformers, a text that ends with the padding token, which is often the end token, is classified before it.
    A text of padding alone is classified at its last token.
    """
    return next((index for index in reversed(range(len(ids))) if ids[index] != pad_token_id), len(ids) - 1)
