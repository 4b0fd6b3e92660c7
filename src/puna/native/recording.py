"""The residual stream of a forward pass of the native backend, for training."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from puna.backend import Batch, Outputs
from puna.errors import BackendError
from puna.native.backend import NativeBackend
from puna.native.library import load_library


def forward_with_states(backend: NativeBackend, batch: Batch) -> tuple[Outputs, NDArray[np.float32]]:
    """Returns the outputs of a batch, and the residual stream before each layer and after the last one.

    The rotary frequencies of the model must not depend on the length of the text, as those of dynamic and longrope do.

    Returns:
        The outputs of `backend.forward(batch)`, and (layers + 1, T, D) for the T tokens of all chunks in their order.
    """
    if not backend.native_model:
        raise BackendError("the model is closed; load it again")
    config = backend.config
    tokens = sum(len(chunk.tokens) for chunk in batch)
    states = np.empty((config.num_hidden_layers + 1, tokens, config.hidden_size), np.float32)
    record = load_library().puna_model_record
    record.restype, record.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p)
    record(backend.native_model, states.ctypes.data)
    try:
        return backend.forward(batch), states
    finally:
        record(backend.native_model, None)
