"""The task of supervised fine-tuning: settings reach the data, held-out data has its own split, prompts of samples."""

from __future__ import annotations

import json

import numpy as np
import pytest

from puna.tokenizer import load_tokenizer
from puna.training.batch import Batch
from puna.training.data.packing import pack
from puna.training.settings import TrainingSettings
from puna.training.tasks.sft import SupervisedFineTuning
from tests.golden.files import LAYOUTS

CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me and you."}]}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(LAYOUTS["hf"])


def settings(**values):
    return TrainingSettings.of({"model": str(LAYOUTS["hf"]), **values})


def test_settings_reach_the_data(tokenizer):
    task = SupervisedFineTuning()
    calls = []
    task.progress = lambda done, total: calls.append((done, total))
    rows = [{"q": "one two three", "a": " four"}, {"q": "one", "a": ""}]
    options = {"columns": {"prompt": "q", "completion": "a"}, "bad_rows": "skip", "truncate": "start"}
    examples = task.read(rows, settings(max_length=10, prompt_loss_weight=0.5, **options), tokenizer)
    assert len(examples) == 1 and len(examples[0].ids) == 10 and examples[0].ids[-1] == tokenizer.eos_token_id
    assert len(task.notes) == 2 and "1 row truncated" in task.notes[0] and "1 row left out" in task.notes[1]
    assert calls == [(2, 2)]
    plain = SupervisedFineTuning().read(rows, settings(max_length=10, **options), tokenizer)
    assert plain.digest() != examples.digest()
    again = SupervisedFineTuning().read(rows, settings(max_length=10, **options), tokenizer)
    assert plain.digest() == again.digest()


def test_held_out_data_of_a_folder_is_its_validation_split(tmp_path, tokenizer):
    for name, text in (("train", "a b c"), ("valid", "d e f")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}))
    task = SupervisedFineTuning()
    train = task.read(tmp_path, settings(), tokenizer)
    held_out = task.read_held_out(tmp_path, settings(), tokenizer)
    decode = lambda examples: tokenizer.decode(examples[0].ids.tolist(), skip_special_tokens=True)  # noqa: E731
    assert (decode(train).strip(), decode(held_out).strip()) == ("a b c", "d e f")


def test_prompts_of_samples_are_chats_if_the_data_are(tokenizer):
    task = SupervisedFineTuning()
    task.read([{"text": "a b"}], settings(), tokenizer)
    assert task.encode_prompt("Who?", tokenizer) == tokenizer("Who?")["input_ids"]
    examples = task.read([CHAT], settings(), tokenizer)
    ids = task.encode_prompt("Who?", tokenizer)
    assert ids == tokenizer("<s>[INST] Who? [/INST]", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(examples[0].ids.tolist()).startswith(tokenizer.decode(ids).strip())


def test_a_packed_batch_has_the_documents_one_after_another(tokenizer):
    rows = [{"text": "word " * count} for count in (9, 2, 5, 1)]
    examples = SupervisedFineTuning().read(rows, settings(), tokenizer)
    for group in pack(examples.lengths, 12):
        batch = Batch.of([examples[index] for index in group], 0)
        assert batch.lengths == tuple(examples.lengths[group]) and sum(batch.lengths) == batch.tokens
        starts = np.cumsum([0, *batch.lengths[:-1]])
        assert not batch.weights[starts].any() and batch.total_weight == batch.tokens - len(group)
