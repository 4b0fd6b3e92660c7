"""The native forward pass and its rotary frequencies, compared with PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from puna.config.frequencies import RotaryFrequencies
from puna.native import NativeBackend
from tests.helpers.configurations import config_of
from tests.helpers.native import pack, relative_rms, run
from tests.native.shapes import SHAPES

torch = pytest.importorskip("torch")

from puna.model.rope import LlamaRotaryEmbedding  # noqa: E402
from tests.helpers.reference_models import pair  # noqa: E402


@pytest.mark.parametrize("name", SHAPES)
def test_logits_agree_with_pytorch(name, kernels):
    model, _ = pair(config_of(**SHAPES[name]))
    random = np.random.default_rng(0)
    state = {key: pack("f32", value.detach().numpy(), random) for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    length = min(200, model.config.context_length)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, length)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(ids)[None]).logits[0].numpy()
    backend = NativeBackend(model.config, state, 2)
    assert relative_rms(run(backend, ids, [length]), expected) < 1e-5
    assert relative_rms(run(backend, ids, [1] * length), expected) < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_frequencies_agree_with_pytorch(name):
    config = config_of(**SHAPES[name])
    _compare_frequencies(config)


def test_dynamic_frequencies_with_factor_1_agree_with_pytorch_beyond_the_maximum():
    config = config_of(rope_scaling={"rope_type": "dynamic", "factor": 1}, max_position_embeddings=20)
    _compare_frequencies(config, 60)
    frequencies = [inv_freq for _, _, inv_freq in RotaryFrequencies(config).runs(0, 40)][-1]
    width = config.head_dim
    base = config.rope_theta * 2 ** (width / (width - 2))  # 40 tokens are twice the maximum
    np.testing.assert_allclose(frequencies, base ** -(np.arange(0, width, 2) / width), rtol=1e-6)


def _compare_frequencies(config, length=None):
    rope, reference = RotaryFrequencies(config), LlamaRotaryEmbedding(config)
    assert rope.scale == pytest.approx(reference.scaling)
    assert rope.by_length == reference.by_length
    for first, last, inv_freq in rope.runs(3, (length or config.context_length) - 3):
        for position in (3 + first, 3 + last - 1):
            length = torch.tensor([[[position + 1]]])
            expected = reference._for_length(length) if reference.by_length else reference.inv_freq
            np.testing.assert_allclose(inv_freq, expected.numpy().reshape(-1), rtol=1e-6)
