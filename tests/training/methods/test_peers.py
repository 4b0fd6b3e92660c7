"""Each method has the loss curve of PEFT, and the files of each are read by the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from puna.adapters import open_adapter, save_adapter  # noqa: E402
from puna.adapters.torch_apply import apply_adapter  # noqa: E402
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification  # noqa: E402
from puna.training.methods.table import METHODS  # noqa: E402
from puna.training.settings import TrainingSettings  # noqa: E402
from tests.helpers.reference_models import distance  # noqa: E402
from tests.training.methods.peers import (  # noqa: E402
    EXACT_LIMIT,
    PEERS,
    adapted_pair,
    golden,
    reference,
    text_batches,
    train,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

RATES = {"full": 1e-3, "prompt": 3e-2, "prefix": 3e-2, "mlp": 3e-3, "lstm": 1e-2, "ia3": 2e-2}
ADAPTERS = [name for name in PEERS if name != "full"]


def compare_curves(
    model: Any, trainable: Any, theirs: Any, name: str, steps: int, labels: Any
) -> tuple[list[float], list[float]]:
    batches = text_batches(steps) if steps < 10 else text_batches(5) * (steps // 5)
    rate = RATES.get(name, 5e-3)
    ours = train(model, trainable.parameters.values(), batches, labels, rate)
    parameters = [item for item in theirs.parameters() if item.requires_grad]
    expected = train(theirs, parameters, batches, labels, rate)
    assert max(abs(a - b) for a, b in zip(ours, expected, strict=True)) <= 1e-4
    return ours, expected


@pytest.mark.parametrize("name", PEERS)
def test_short_loss_curves_equal_those_of_peft(name, tmp_path):
    model, trainable, theirs = adapted_pair(name, golden(tmp_path))
    compare_curves(model, trainable, theirs, name, 6, lambda ids: ids)
    if name != "full":
        check_files(model, trainable, theirs, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", PEERS)
def test_loss_curves_of_50_steps_equal_those_of_peft(name, tmp_path):
    model, trainable, theirs = adapted_pair(name, golden(tmp_path))
    losses, _ = compare_curves(model, trainable, theirs, name, 50, lambda ids: ids)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


@pytest.mark.parametrize("name", ["full", "lora", "prompt", "prefix", "ia3"])
def test_loss_curves_of_classifiers_equal_those_of_peft(name, tmp_path):
    folder = golden(tmp_path / "base", 3)
    model, trainable, theirs = adapted_pair(name, folder, 3)
    assert "score.weight" in trainable.parameters
    labels = lambda ids: ids.sum(1) % 3  # noqa: E731
    compare_curves(model, trainable, theirs, name, 6, labels)
    if name != "full":
        check_files(model, trainable, theirs, tmp_path, folder, 3)


def check_files(
    model: Any, trainable: Any, theirs: Any, tmp_path: Path, base: Path | None = None, classes: int = 0
) -> None:
    """PEFT computes puna's logits from puna's files, and puna those of PEFT from PEFT's files and continues them."""
    base = golden(tmp_path) if base is None else base
    ids = text_batches(1, 1)[0]
    with torch.no_grad():
        expected = model(ids).logits
        their_logits = theirs.eval()(ids).logits
    save_adapter(trainable.adapter(), tmp_path / "ours")
    with torch.no_grad():
        theirs.save_pretrained(tmp_path / "theirs")
        loaded = peft.PeftModel.from_pretrained(reference(base, classes), tmp_path / "ours").eval()
        assert distance(loaded(ids).logits, expected) <= EXACT_LIMIT
    kind = LlamaForSequenceClassification if classes else LlamaForCausalLM
    other = kind.from_pretrained(base)
    before = other(ids).logits.detach()
    assert distance(expected[:, -20:], before) > 1e-4, "the adapter changes nothing"
    with torch.no_grad(), apply_adapter(other, open_adapter(tmp_path / "ours", other.config)):
        assert distance(other(ids).logits, expected) <= EXACT_LIMIT
    continue_from(other, tmp_path / "theirs", trainable.kind, ids, their_logits)
    assert torch.equal(other(ids).logits, before)


def continue_from(model: Any, folder: Path, kind: str, ids: torch.Tensor, logits: torch.Tensor) -> None:
    settings = TrainingSettings(method=kind, adapter=str(folder))
    started = METHODS[kind].attach(model, None, settings)
    out = model(ids, labels=ids if model.head == "lm" else ids.sum(1) % 3)
    assert distance(out.logits, logits) <= EXACT_LIMIT
    out.loss.backward()
    assert all(item.grad is not None for item in started.parameters.values())
    started.release()


@pytest.mark.parametrize("name", ["prompt", "prefix", "tokens"])
def test_generated_tokens_equal_those_of_peft(name, tmp_path):
    """Virtual tokens count neither in masks nor in the ids of the result. Padding changes nothing.

    PEFT counts padding in positions that follow a soft prompt, so that only texts without padding are compared.
    """
    model, trainable, _ = adapted_pair(name, golden(tmp_path))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(trainable.adapter(), tmp_path / "new")
    theirs = peft.PeftModel.from_pretrained(reference(golden(tmp_path)), tmp_path / "new").eval()
    ids = text_batches(1, 2, 9)[0]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    result = model.eval().generate(ids, attention_mask=mask, **settings)
    for row, start in ((0, 3), (1, 0)):
        text = ids[row : row + 1, start:]
        alone = model.generate(text, **settings)
        assert torch.equal(alone, theirs.generate(input_ids=text, attention_mask=torch.ones_like(text), **settings))
        assert torch.equal(alone[0], result[row, start:])
    trainable.release()
    assert not torch.equal(model.generate(ids, attention_mask=mask, **settings), result)
