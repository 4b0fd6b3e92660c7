"""`runtime_changes`: the changes of an adapter in the form in which a backend applies them to single requests.

The weights of the model stay as they are. Most changes of a matrix are low-rank products, biases and factors of its
outputs. A changed embedding is computed here, as the input of the first layer. What remains are replaced tensors.

Legend: O outputs, I inputs, R rank, D hidden, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from puna.adapters.adapter import Adapter, Floats
from puna.adapters.changes import change_rows, changed_column_norms
from puna.backend import LowRank
from puna.checkpoint.names import EMBEDDING, SCORE
from puna.checkpoint.weight import Index, RowSource
from puna.config import LlamaConfig
from puna.errors import BackendError, RequestError
from puna.lazy import cached_property

_DOWN, _UP = ".mlp.down_proj.weight", ".mlp.up_proj.weight"
_ROWS = 512
"""Number of rows of a matrix that are decoded at once."""

_LENGTH_ROPES = ("dynamic", "longrope")
"""Rope types that cache unrotated keys; the keys of a prefix are rotated."""


@dataclass(frozen=True)
class RuntimeChanges:
    """The changes of one adapter, without its virtual tokens and its classification head.

    Attributes:
        products: changes of matrix products, by the name of the matrix.
        replaced: complete tensors, by name. The bias of a replaced matrix is changed by `products`.
        embedding: the changed embedding; None if the adapter does not change it.
    """

    products: dict[str, LowRank] = field(default_factory=dict)
    replaced: dict[str, Floats] = field(default_factory=dict)
    embedding: ChangedTensor | None = None


def runtime_changes(adapter: Adapter, tensors: Mapping[str, RowSource], may_replace: bool) -> RuntimeChanges:
    """Returns the changes of an adapter.

    Args:
        tensors: the model's tensors.
        may_replace: whether the backend can replace complete tensors.

    Raises:
        BackendError: the adapter has bottlenecks, or replaces a tensor, but the backend cannot do this.
    """
    if adapter.bottlenecks:
        raise BackendError(
            f"{adapter.path}: bottleneck adapters cannot be applied to single requests; use "
            "puna.adapters.torch_apply.apply_adapter with a PyTorch model, or train a LoRA"
        )
    names = {*adapter.low_rank, *adapter.scalings, *adapter.token_rows, *adapter.replaced} - {SCORE}
    weights = {name.removesuffix("bias") + "weight" if name.endswith(".bias") else name for name in names}
    changed = {name: ChangedTensor(adapter, tensors, name) for name in sorted(weights)}
    embedding = changed.pop(EMBEDDING, None)
    replaced = [name for name, tensor in changed.items() if not tensor.is_product]
    if replaced and not may_replace:
        raise BackendError(
            f"{adapter.path}: the adapter changes {replaced[0]!r} in a way that the native backend cannot apply to "
            f"single requests ({len(replaced)} tensors in total); use backend='torch', or merge the adapter into the "
            "model with: puna merge"
        )
    products = {name: product for name, tensor in changed.items() if (product := tensor.product) is not None}
    for name, tensor in changed.items():
        if name not in replaced and (factors := tensor.factors("inputs")) is not None:
            up = ChangedTensor(adapter, tensors, name.replace(_DOWN, _UP))
            products[up.name] = _scaled(products.get(up.name, up.no_change), factors, up.bias)
    return RuntimeChanges(
        products,
        {name: changed[name].values() for name in replaced},
        None if embedding is None or embedding.is_same else embedding,
    )


def check_prefix(adapter: Adapter, config: LlamaConfig) -> None:
    """Raises RequestError if the model's rope type cannot use the adapter's prefix."""
    if adapter.prefix is not None:
        check_rope(config)


def check_rope(config: LlamaConfig) -> None:
    """Raises RequestError if the model's rope type cannot use a prefix."""
    rope = (config.rope_scaling or {}).get("rope_type")
    if rope in _LENGTH_ROPES:
        raise RequestError(
            f"the model has rope type {rope!r}, whose keys depend on the length of the text; a prefix stores keys for "
            "one length. Use the adapter's base model, or an adapter of another kind"
        )


@dataclass(frozen=True, eq=False)
class ChangedTensor:
    """A matrix or a norm of the model that an adapter changes."""

    adapter: Adapter
    tensors: Mapping[str, RowSource]
    name: str

    @property
    def is_same(self) -> bool:
        """Whether nothing is changed: PEFT may store a copy of the model's tensor next to its changes."""
        tables = (self.adapter.low_rank, self.adapter.scalings, self.adapter.token_rows)
        return not self._is_replaced and not any(self.name in table for table in tables)

    @property
    def is_product(self) -> bool:
        """Whether low-rank products, a bias and factors of outputs express all changes."""
        if self.factors("inputs") is not None:
            # The inputs of down_proj are proportional to the outputs of up_proj.
            up = ChangedTensor(self.adapter, self.tensors, self.name.replace(_DOWN, _UP))
            if up.name == self.name or not up.is_product:
                return False
        return not self._is_replaced

    @property
    def product(self) -> LowRank | None:
        """The changes of the outputs; if the matrix is replaced, only those of the bias. None if there are none."""
        if len(self._source.shape) == 1:
            return None
        result = replace(self.no_change, bias=self._bias_change)
        parts = list(self._low_rank_parts())
        if parts:
            a, b = zip(*parts, strict=True)
            result = replace(result, a=np.concatenate(a), b=np.concatenate(b, axis=1))
        change, factors = self.adapter.low_rank.get(self.name), self.factors("outputs")
        if change is not None and change.magnitude is not None:
            result = replace(result, row_scale=change.magnitude / self._row_norms())
        if factors is not None:
            result = _scaled(result, factors, self.bias)
        if not self.is_product:
            result = replace(self.no_change, bias=result.bias)
        return None if not len(result.a) and result.bias is None and result.row_scale is None else result

    @property
    def no_change(self) -> LowRank:
        """A product that changes nothing."""
        outputs, inputs = self._source.shape
        return LowRank(np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32))

    @property
    def bias(self) -> Floats | None:
        """The model's bias of the layer, (O,)."""
        stored = self.tensors.get(self._bias_name)
        return None if stored is None else _values(stored, np.arange(stored.shape[0])).reshape(-1)

    def factors(self, side: str) -> Floats | None:
        """Returns the factors of the layer's inputs, (I,), or of its outputs, (O,), if the adapter has any."""
        scaling = self.adapter.scalings.get(self.name)
        return None if scaling is None or scaling.side != side else scaling.factors

    def values(self) -> Floats:
        """Returns the changed tensor."""
        return np.concatenate(list(self._pieces())).reshape(self._source.shape)

    def rows(self, indices: Sequence[int]) -> Floats:
        """Returns rows of the changed tensor, (n, I)."""
        rows, place = np.unique(np.asarray(indices, np.intp), return_inverse=True)
        # One row at a time: the bits of a product in NumPy depend on its number of rows.
        changed = [self._changed_rows(row) for row in rows.reshape(-1, 1)]
        return np.concatenate(changed)[place]

    @property
    def _bias_name(self) -> str:
        return self.name.removesuffix("weight") + "bias"

    @property
    def _source(self) -> RowSource:
        """The tensor to which the adapter's changes are added; a tied head is the embedding."""
        source = self.adapter.replaced.get(self.name) or self.tensors.get(self.name)
        return self.tensors[EMBEDDING] if source is None else source

    @cached_property
    def _is_replaced(self) -> bool:
        """Whether the adapter replaces all values of the tensor."""
        new, old = self.adapter.replaced.get(self.name), self.tensors.get(self.name)
        old = self.tensors[EMBEDDING] if old is None else old
        if new is None or new.shape != old.shape:
            return new is not None
        return not all(np.array_equal(_values(new, rows), _values(old, rows)) for rows in _row_pieces(new))

    @property
    def _bias_change(self) -> Floats | None:
        """The change of the bias, (O,), before the factors of the outputs."""
        change, stored = self.adapter.low_rank.get(self.name), self.adapter.replaced.get(self._bias_name)
        added = None if change is None else change.bias
        if stored is None:
            return added
        assert self.bias is not None, "an adapter replaces only biases that the model has"
        new = _values(stored, np.arange(stored.shape[0])).reshape(-1) - self.bias
        return new if added is None else new + added

    def _low_rank_parts(self) -> Iterator[tuple[Floats, Floats]]:
        """Yields (a, b) of new rows of tokens, and of the low-rank change."""
        if tokens := self.adapter.token_rows.get(self.name):
            last = {int(token): index for index, token in enumerate(tokens.ids)}
            ids = np.array(list(last), np.intp)
            unit = np.zeros((self._source.shape[0], len(ids)), np.float32)
            unit[ids, np.arange(len(ids))] = 1
            yield tokens.values[list(last.values())] - _values(self._source, ids), unit
        if change := self.adapter.low_rank.get(self.name):
            yield change.a, change.b * np.float32(change.scale)

    def _row_norms(self) -> Floats:
        """Returns the norms of the rows with their low-rank change, (O,), which DoRA divides by."""
        change = replace(self.adapter.low_rank[self.name], magnitude=None)
        plain = replace(self, adapter=replace(self.adapter, low_rank={self.name: change}, scalings={}))
        return np.concatenate([np.linalg.norm(piece, axis=1) for piece in plain._pieces()])

    @cached_property
    def _column_norms(self) -> Floats | None:
        change = self.adapter.low_rank.get(self.name)
        if change is None or change.magnitude is None or self.name != EMBEDDING:
            return None
        pieces = ((_values(self._source, rows), rows) for rows in _row_pieces(self._source))
        return changed_column_norms(self.adapter, self.name, pieces)

    def _pieces(self) -> Iterator[Floats]:
        """Yields the changed rows in order, (n, I)."""
        return map(self._changed_rows, _row_pieces(self._source))

    def _changed_rows(self, rows: Index) -> Floats:
        return change_rows(self.adapter, self.name, _values(self._source, rows), rows, self._column_norms)


def _scaled(product: LowRank, factors: Floats, bias: Floats | None) -> LowRank:
    """Returns a product whose outputs, with the model's bias, are multiplied by factors (O,)."""
    total = product.bias if bias is None else bias if product.bias is None else bias + product.bias
    new = None if total is None else factors * total - (0 if bias is None else bias)
    return replace(product, bias=new, row_scale=factors if product.row_scale is None else product.row_scale * factors)


def _values(source: RowSource, rows: Index) -> Floats:
    """Returns rows of a tensor, (n, I)."""
    return source.format.decode(source.take(rows).reshape(-1)).reshape(len(rows), -1)


def _row_pieces(source: RowSource) -> Iterator[Index]:
    for start in range(0, source.shape[0], _ROWS):
        yield np.arange(start, min(start + _ROWS, source.shape[0]))
