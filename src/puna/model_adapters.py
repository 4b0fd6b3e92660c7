"""`ModelAdapters`: the adapters of an `LLM`, by name, loaded into its backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from puna.backend import Backend
from puna.engine import LoadedAdapter
from puna.errors import BackendError, RequestError, show, suggestion

if TYPE_CHECKING:
    from puna.adapters import Adapter
    from puna.checkpoint import Checkpoint
    from puna.config import LlamaConfig

_MAX_NAMES = 10
"""Maximum number of names in an error."""


@dataclass(frozen=True)
class ModelAdapter:
    """An adapter of an `LLM`.

    Attributes:
        name: its name in `LLM(adapters=...)`.
        loaded: what requests refer to.
        config: the configuration of the adapted model, with the adapter's number of labels.
        head: the head that the adapter was trained with.
        score: the matrix of the adapter's classification head, (num_labels, D); None if it has none.
    """

    name: str
    loaded: LoadedAdapter
    config: LlamaConfig
    head: Literal["lm", "classification"]
    score: NDArray[np.float32] | None


class ModelAdapters:
    """The adapters of a model, by name.

    Args:
        paths: folders of PEFT or GGUF adapters, by name.
        checkpoint: the model.
        backend: runs the model; loads the adapters.

    Raises:
        RequestError: `paths` does not map names to paths.
        CheckpointError, ModelNotFoundError: an adapter is damaged or incomplete, or belongs to another model.
        BackendError: the backend cannot apply an adapter to single requests.
    """

    def __init__(self, paths: Mapping[str, str | Path] | None, checkpoint: Checkpoint, backend: Backend) -> None:
        if paths is not None and not isinstance(paths, Mapping):
            raise RequestError(f"adapters is {show(paths)}; it must be a dictionary of names and paths")
        self._adapters: dict[str, ModelAdapter] = {}
        for name, path in (paths or {}).items():
            if not isinstance(name, str) or not name:
                raise RequestError(f"adapters has the name {show(name)}; it must be a text of at least one character")
            self._adapters[name] = _load(name, path, checkpoint, backend)

    def loaded(self, name: str | None) -> LoadedAdapter | None:
        """Returns the adapter for a request; raises the errors of `get`."""
        adapter = self.get(name)
        return None if adapter is None else adapter.loaded

    def for_text(self, name: str | None) -> LoadedAdapter | None:
        """Returns the adapter for a request that generates or scores text; raises the errors of `get`.

        Raises:
            RequestError: the adapter was trained to classify.
        """
        adapter = self.get(name)
        if adapter is not None and adapter.head == "classification":
            raise RequestError(f"the adapter {name!r} was trained to classify texts; use classify()")
        return None if adapter is None else adapter.loaded

    def get(self, name: str | None) -> ModelAdapter | None:
        """Returns the adapter with this name; None if the name is None.

        Raises:
            RequestError: there is no such adapter.
        """
        if name is None:
            return None
        if isinstance(name, str) and name in self._adapters:
            return self._adapters[name]
        names = sorted(self._adapters)
        if not names:
            raise RequestError(
                f"adapter is {show(name)}, but no adapter is loaded; load the model with adapters={{name: path}}"
            )
        shown = ", ".join(map(show, names[:_MAX_NAMES])) + (", ..." if len(names) > _MAX_NAMES else "")
        raise RequestError(f"adapter is {show(name)}; the loaded adapters are {shown}{suggestion(name, names)}")


def _load(name: str, path: str | Path, checkpoint: Checkpoint, backend: Backend) -> ModelAdapter:
    """Reads an adapter and loads it into the backend."""
    from puna.adapters import open_adapter
    from puna.adapters.digest import adapter_digest
    from puna.adapters.runtime import check_prefix, runtime_changes
    from puna.checkpoint.names import SCORE

    adapter = open_adapter(path, checkpoint.config)
    _check_vocabulary(adapter, checkpoint)
    check_prefix(adapter, checkpoint.config)
    changes = runtime_changes(adapter, checkpoint.tensors, may_replace=backend.name != "native")
    number = 0
    if changes.products or changes.replaced:
        try:
            number = backend.load_adapter(changes.products, changes.replaced)
        except BackendError as exc:
            raise BackendError(f"{adapter.path}: {exc}") from exc
    loaded = LoadedAdapter(
        adapter_digest(adapter), number, None if changes.embedding is None else changes.embedding.rows,
        adapter.prompt, adapter.prefix, name,
    )  # fmt: skip
    score = adapter.replaced.get(SCORE)
    matrix = None if score is None else score.format.decode(score.data).reshape(score.shape)
    return ModelAdapter(name, loaded, adapter.config, adapter.head, matrix)


def _check_vocabulary(adapter: Adapter, checkpoint: Checkpoint) -> None:
    size, vocabulary = adapter.config.vocab_size, checkpoint.config.vocab_size
    if size != vocabulary:
        raise BackendError(
            f"{adapter.path}: the adapter has a vocabulary of {size} tokens, and the model {vocabulary}; merge the "
            "adapter into the model with: puna merge"
        )
