"""Ctrl-C during a native call interrupts it between two layers; the backend can be used again."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from puna.backend import Chunk, consecutive_pages
from puna.config import LlamaConfig
from puna.formats.blocks import FORMATS
from puna.native import NativeBackend
from tests.helpers.native import PackedTensor

TOKENS = 448


@pytest.fixture(scope="module")
def backend() -> NativeBackend:
    """A backend with a model of twelve layers, whose forward pass takes a large fraction of a second."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    random = np.random.default_rng(0)
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {"model.embed_tokens.weight": (64, hidden), "lm_head.weight": (64, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    tensors = {}
    for name, shape in shapes.items():
        values = (random.normal(0, 0.03, shape) + (len(shape) == 1)).astype(np.float32)
        tensors[name] = PackedTensor(FORMATS["f32"], shape, values.reshape(-1).view(np.uint8))
    return NativeBackend(config, tensors, 1)


def timed_forward(backend: NativeBackend) -> tuple[np.ndarray, float]:
    """Returns the logits of a forward pass, and its processor time in seconds."""
    started = time.process_time()
    logits = backend.forward([Chunk(consecutive_pages(TOKENS), np.arange(TOKENS) % 64, 0)]).logits
    return logits, time.process_time() - started


def interrupt_after(seconds: float, sent: list[float] | None = None) -> threading.Thread:
    """Starts a thread that sends SIGINT to this process and appends the processor time of then to `sent`."""

    def send() -> None:
        time.sleep(seconds)
        if sent is not None:
            sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.timing
def test_an_interrupt_ends_the_pass_and_leaves_a_usable_backend(backend):
    expected, duration = timed_forward(backend)
    delays = []
    for _ in range(3):  # other programs may delay the thread that sends the signal
        sent: list[float] = []
        thread = interrupt_after(duration / 6, sent)
        with pytest.raises(KeyboardInterrupt):
            while True:
                timed_forward(backend)
        delays.append(time.process_time() - sent[0])
        thread.join()
    assert min(delays) < 0.6 * duration  # each of the twelve layers takes a twelfth of the duration
    assert (timed_forward(backend)[0] == expected).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_handler_that_does_not_raise_does_not_change_the_logits(backend):
    expected, duration = timed_forward(backend)
    calls = []
    previous_handler = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        thread = interrupt_after(duration / 6)
        logits, _ = timed_forward(backend)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, previous_handler)
    assert calls == [1]
    assert (logits == expected).all()


@pytest.mark.slow
def test_ignored_signals_and_passes_in_other_threads_are_not_affected(backend):
    expected, duration = timed_forward(backend)
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        thread = interrupt_after(duration / 6)
        assert (timed_forward(backend)[0] == expected).all()
        thread.join()
    finally:
        signal.signal(signal.SIGINT, previous_handler)
    results = []
    worker = threading.Thread(target=lambda: results.append(timed_forward(backend)[0]))
    worker.start()
    worker.join()
    assert (results[0] == expected).all()
