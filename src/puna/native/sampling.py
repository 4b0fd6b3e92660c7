"""Chooses tokens from logits in the native library: one call for all rows of a step."""

from __future__ import annotations

import ctypes
import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.config import Distribution, Sampling
from puna.errors import BackendError, PunaError, RequestError
from puna.native.library import OK, chosen_kernels, load_library

_TYPES: dict[str, type[ctypes.c_double | ctypes.c_int64]] = {"float": ctypes.c_double, "int": ctypes.c_int64}
"""The type in C of each type of option."""

_NOT_FINITE, _NO_TOKEN = 1, 2
"""The statuses PUNA_SAMPLE_NOT_FINITE and PUNA_SAMPLE_NO_TOKEN."""


class NativeSampling(ctypes.Structure):
    """The C struct puna_sampling."""

    _fields_ = tuple((option.name, _TYPES[str(option.type)]) for option in dataclasses.fields(Distribution))


class NativeRow(ctypes.Structure):
    """The C struct puna_sample_row."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "options", "seen", "generated", "bias_ids", "bias")),
        *((name, ctypes.c_void_p) for name in ("allowed", "top_ids", "top_logprobs")),
        *((name, ctypes.c_double) for name in ("uniform", "logprob")),
        *((name, ctypes.c_int32) for name in ("seen_count", "bias_count", "top_count", "given", "token", "status")),
    )


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """The model's log-probabilities at one position: those of its logits before any option changes them.

    Attributes:
        token: id of the token at this position.
        logprob: its log-probability, in nats.
        top: (id, log-probability) of the most likely tokens, in descending order.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Choice(NamedTuple):
    """The result of one row: a token, or the error that prevented the choice."""

    token: int
    logprobs: TokenLogprobs | None = None
    error: PunaError | None = None


class SampleRow:
    """The native arguments of one request, which stay in memory between its choices.

    Args:
        sampling: the request's options.
    """

    def __init__(self, sampling: Sampling) -> None:
        options = dataclasses.fields(Distribution)
        self._options = NativeSampling(*(_native_number(getattr(sampling, option.name)) for option in options))
        top_count = -1 if sampling.logprobs is None else int(sampling.logprobs)
        self._arrays: dict[str, NDArray[np.generic]] = {}  # the memory to which the pointers of `native` point
        self.native = NativeRow(options=ctypes.addressof(self._options), top_count=top_count, given=-1)
        self._set("bias_ids", np.array(list(sampling.logit_bias), np.int32))
        self._set("bias", np.array(list(sampling.logit_bias.values()), np.float64))
        self.native.bias_count = len(sampling.logit_bias)
        self._set("top_ids", np.zeros(max(0, top_count), np.int32))
        self._set("top_logprobs", np.zeros(max(0, top_count), np.float64))
        self._index: dict[int, int] = {}  # token -> its index in `seen` and `generated`

    def _set(self, name: str, array: NDArray[np.generic]) -> None:
        self._arrays[name] = array
        setattr(self.native, name, array.ctypes.data)

    def count(self, tokens: Sequence[int], generated: int) -> None:
        """Adds tokens of the sequence for the penalties. `generated`: 1 for tokens of the answer, else 0."""
        for token in tokens:
            index = self._index.setdefault(token, len(self._index))
            if index >= len(self._arrays.get("seen", ())):
                for name in ("seen", "generated"):
                    grown = np.zeros(2 * index + 64, np.int32)
                    grown[:index] = self._arrays.get(name, grown)[:index]
                    self._set(name, grown)
            self._arrays["seen"][index] = token
            self._arrays["generated"][index] += generated
        self.native.seen_count = len(self._index)

    def prepare(self, uniform: float, allowed: NDArray[np.uint32] | None) -> None:
        """Sets the arguments of the next choice.

        Args:
            uniform: a random number in [0, 1).
            allowed: a bit per token, lowest bit first: 1 if the token may be chosen. None allows all tokens.
        """
        self.native.uniform = uniform
        if allowed is not None:
            self._set("allowed", np.ascontiguousarray(allowed, dtype=np.uint32))
        else:
            self.native.allowed = None

    def choice(self, native: NativeRow) -> Choice:
        """Returns the result that the library wrote to `native`, a copy of `self.native`."""
        if native.status == _NOT_FINITE:
            return most_likely(-1)
        if native.status == _NO_TOKEN:
            return Choice(-1, error=RequestError(
                "no token may be chosen: min_tokens forbids the tokens that end the answer, and allowed_token_ids, "
                "bad_words or the grammar all others; lower min_tokens, or allow more tokens"
            ))  # fmt: skip
        if native.top_count < 0:
            return Choice(native.token)
        top = zip(self._arrays["top_ids"].tolist(), self._arrays["top_logprobs"].tolist(), strict=True)
        return Choice(native.token, TokenLogprobs(native.token, native.logprob, tuple(top)))


def most_likely(token: int) -> Choice:
    """Returns the choice of the token with the highest logit; -1 if the logits are not finite."""
    error = "the model's logits are not finite; the weights are damaged, or values exceed the range of dtype"
    return Choice(token, error=None if token >= 0 else BackendError(error))


def _native_number(value: Any) -> float:
    """Returns a number of Python in place of NumPy's; integers are limited to int64."""
    return min(int(value), 2**63 - 1) if isinstance(value, numbers.Integral) else float(value)


def choose_tokens(
    logits: NDArray[np.float32], rows: Sequence[tuple[int, SampleRow]], model: int | None = None
) -> list[Choice]:
    """Returns the choice of each row.

    Args:
        logits: (T, vocab_size), not modified.
        rows: (index of the row of logits, the prepared arguments). A SampleRow may occur only once.
        model: a native model whose threads share the rows; no other call may use it meanwhile. None: this thread.

    Raises:
        BackendError: if the call fails. Logits that are not finite only fail their row: see `Choice.error`.
    """
    count, vocab_size = logits.shape
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    start, stride = logits.ctypes.data, logits.strides[0]
    array = (NativeRow * len(rows))()
    for number, (index, row) in enumerate(rows):
        assert 0 <= index < count and len(row._arrays.get("allowed", range(vocab_size))) * 32 >= vocab_size
        row.native.logits = start + index * stride
        array[number] = row.native
    _run(array, vocab_size, model)
    return [row.choice(native) for native, (_, row) in zip(array, rows, strict=True)]


def _run(array: ctypes.Array[NativeRow], vocab_size: int, model: int | None) -> None:
    library = load_library()
    if model is None:
        status = library.puna_sample(chosen_kernels().encode(), vocab_size, array, len(array))
    else:
        status = library.puna_model_sample(model, vocab_size, array, len(array))
    if status != OK:
        raise BackendError(f"the native runtime failed: {library.puna_error().decode()}")


def logprobs_of(logits: NDArray[np.float32], tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Returns the log-probabilities of given tokens.

    Args:
        logits: (T, vocab_size).
        tokens: T ids, one for each row of logits.
        top: number of most likely tokens to return for each row.

    Raises:
        BackendError: if logits are not finite.
    """
    rows = [SampleRow(Sampling(logprobs=top)) for _ in tokens]
    for row, token in zip(rows, tokens, strict=True):
        row.native.given = token
    choices = choose_tokens(logits, list(enumerate(rows)))
    for choice in choices:
        if choice.error is not None:
            raise choice.error
    return [choice.logprobs for choice in choices if choice.logprobs is not None]


def logprob_values(
    logits: NDArray[np.float32], tokens: NDArray[np.int64], model: int | None = None
) -> NDArray[np.float64]:
    """Returns the log-probabilities of `logprobs_of` as an array, (T,), faster; NaN where logits are not finite.

    Args:
        logits: (T, vocab_size).
        tokens: (T,) ids.
        model: as in `choose_tokens`.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    start, stride = logits.ctypes.data, logits.strides[0]
    row = SampleRow(Sampling(logprobs=0))
    array = (NativeRow * len(tokens))()
    for index, token in enumerate(tokens.tolist()):
        row.native.logits, row.native.given = start + index * stride, token
        array[index] = row.native
    _run(array, logits.shape[1], model)
    return np.array([item.logprob if item.status == OK else np.nan for item in array], np.float64)
