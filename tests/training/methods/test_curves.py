"""Runs of `puna.train` have the losses of transformers' and PEFT's models in every step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from puna import load_tokenizer, train  # noqa: E402
from puna.training.plan import plan_run  # noqa: E402
from puna.training.tasks.sft import SupervisedFineTuning  # noqa: E402
from tests.golden.files import HELD_OUT, LAYOUTS  # noqa: E402
from tests.training.methods.peers import PEERS, adapted_pair  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

STEPS = 50
RATES = {"full": 1e-3, "lora": 5e-3, "dora": 5e-3, "prompt": 3e-2, "prefix": 3e-2, "ia3": 2e-2}


@pytest.mark.soak
@pytest.mark.parametrize("name", RATES)
def test_runs_of_50_steps_have_the_losses_of_transformers_and_peft(name, tmp_path):
    """Documents of different lengths, which PEFT pads, AdamW, a linear schedule and clipped gradients."""
    text = HELD_OUT.read_text()
    data = [{"text": text[100 * i : 100 * i + 30 + 10 * i]} for i in range(10)]  # an epoch has 5 steps
    options = {"steps": STEPS, "batch_size": 2, "max_length": 48, "truncate": "end", "micro_batch_tokens": 96}
    folder = LAYOUTS["hf"]
    result = train(folder, data, output=tmp_path / "run", dtype="float32", threads=1, learning_rate=RATES[name],
                   **options, **PEERS[name][0])  # fmt: skip
    expected = peers_losses(name, folder, data, result.settings)
    assert len(result.losses) == STEPS
    assert max(abs(ours - theirs) for ours, theirs in zip(result.losses, expected, strict=True)) <= 1e-4
    assert sum(result.losses[-5:]) < 0.97 * sum(result.losses[:5])


def peers_losses(name: str, folder: Path, data: list[dict[str, str]], settings) -> list[float]:
    """Returns the loss of each step, of transformers' model with the same documents in padded batches."""
    examples = SupervisedFineTuning().read(data, settings, load_tokenizer(folder))
    plan = plan_run(examples, None, settings)
    _, _, model = adapted_pair(name, folder, seed=settings.seed)
    trained = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATES[name], weight_decay=0.0)
    schedule = transformers.get_scheduler("linear", optimizer, 0, STEPS)
    losses = []
    for step in range(STEPS):
        rows = [row for batch in plan.window(step) for row in torch.from_numpy(batch.ids).split(batch.lengths)]
        ids, labels = (torch.nn.utils.rnn.pad_sequence(rows, True, value) for value in (0, -100))
        mask = (labels != -100).long()
        labels[:, 0] = -100  # the first token of a document is never predicted, not even from a soft prompt
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
