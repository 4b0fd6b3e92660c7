"""Public recipes written against the Hugging Face API, which run with only the import changed.

Each is a program that imports its LLaMA classes from `llama_library`. It runs once with puna under this name and once
with transformers, and both must have the same `result`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import puna

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

PAGE = """
from llama_library import AutoTokenizer, LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
prompt = "Hey, are you conscious? Can you talk to me?"
inputs = tokenizer(prompt, return_tensors="pt")
generate_ids = model.generate(inputs.input_ids, max_length=60)
result = tokenizer.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
"""

BATCH = """
from llama_library import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32).eval()
batch = tokenizer(["The cat", "A much longer prompt"], padding=True, return_tensors="pt").to(model.device)
with torch.no_grad():
    out = model.generate(**batch, max_new_tokens=8, do_sample=False, no_repeat_ngram_size=3, repetition_penalty=1.2)
result = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1]:])
"""

CLASSIFIER = """
from llama_library import AutoTokenizer, LlamaForSequenceClassification, set_seed

set_seed(3)
tokenizer = AutoTokenizer.from_pretrained(path)
model = LlamaForSequenceClassification.from_pretrained(path, num_labels=2, id2label={0: "no", 1: "yes"})
model.config.pad_token_id = tokenizer.pad_token_id
torch.nn.init.zeros_(model.score.weight)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model.train()
losses = []
for _ in range(3):
    batch = tokenizer(["good", "very bad"], padding=True, return_tensors="pt")
    out = model(**batch, labels=torch.tensor([1, 0]))
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(round(out.loss.item(), 3))
result = losses, model.config.id2label
"""

LORA = """
from peft import LoraConfig, PeftModel, get_peft_model
from llama_library import AutoModelForCausalLM, AutoTokenizer

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(path)
config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batch = tokenizer("The cat sat on the mat", return_tensors="pt")
losses = []
for _ in range(3):
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(round(loss.item(), 3))
model.save_pretrained(folder)
again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), folder).merge_and_unload()
result = losses, round(again(**batch, labels=batch["input_ids"]).loss.item(), 3)
"""

PROMPT_TUNING = """
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from llama_library import AutoModelForCausalLM, AutoTokenizer

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(path)
peft_config = PromptTuningConfig(
    task_type=TaskType.CAUSAL_LM, prompt_tuning_init=PromptTuningInit.TEXT, num_virtual_tokens=4,
    prompt_tuning_init_text="Classify if the tweet is a complaint or not:", tokenizer_name_or_path=path,
    tokenizer_kwargs={"use_fast": True},
)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), peft_config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
batch = tokenizer("Tweet text : I love it Label : no", return_tensors="pt")
losses = []
for _ in range(3):
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(round(loss.item(), 3))
model.eval()
with torch.no_grad():
    out = model.generate(**batch, max_new_tokens=5, eos_token_id=3)
result = losses, out.tolist()
"""

TRAINER = """
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
from llama_library import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
tokenizer.pad_token = tokenizer.eos_token
rows = [tokenizer(text) for text in ("The cat sat", "A dog", "Birds sing at dawn", "Rain") * 2]
arguments = TrainingArguments(
    output_dir=folder, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1, report_to=[],
    use_cpu=True, disable_tqdm=True, seed=1,
)
trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(path), args=arguments, train_dataset=rows,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False), processing_class=tokenizer,
)
trainer.train()
trainer.save_model(folder)
again = AutoModelForCausalLM.from_pretrained(folder)
losses = [round(row["loss"], 3) for row in trainer.state.log_history if "loss" in row]
result = losses, AutoTokenizer.from_pretrained(folder).encode("The cat"), again.config.num_hidden_layers
"""

SFT = """
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from llama_library import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there, how are you?"}]
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(path),
    args=SFTConfig(
        output_dir=folder, max_steps=3, per_device_train_batch_size=2, max_length=64, logging_steps=1, report_to=[],
        use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", learning_rate=1e-3, seed=1,
    ),
    train_dataset=Dataset.from_list([{"messages": chat}] * 8),
    processing_class=tokenizer,
)
trainer.train()
result = [round(float(row["loss"]), 3) for row in trainer.state.log_history if "loss" in row]
"""

STREAMING = """
from threading import Thread
from llama_library import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
thread = Thread(target=model.generate, kwargs=dict(**ids, streamer=streamer, max_new_tokens=12, do_sample=False))
thread.start()
pieces = list(streamer)
thread.join()
result = "".join(pieces)
"""

EMBEDDINGS = """
from llama_library import AutoModel, AutoTokenizer

def mean_pooling(output, attention_mask):
    states = output[0]
    mask = attention_mask.unsqueeze(-1).expand(states.size()).float()
    return torch.sum(states * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)

tokenizer = AutoTokenizer.from_pretrained(path)
tokenizer.padding_side = "right"
model = AutoModel.from_pretrained(path)
encoded = tokenizer(["This is an example sentence", "Each one"], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    vectors = torch.nn.functional.normalize(mean_pooling(model(**encoded), encoded["attention_mask"]), p=2, dim=1)
result = [[round(value, 3) for value in row] for row in vectors.tolist()]
"""

PIPELINE = """
from llama_library import AutoModelForCausalLM, AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
answer = write("The cat", max_new_tokens=6, do_sample=False)[0]["generated_text"]
chat = write([{"role": "user", "content": "Hi"}], max_new_tokens=6, do_sample=False)[0]["generated_text"]
result = answer, chat
"""

RECIPES = {
    "the page": PAGE, "batch generation": BATCH, "classifier": CLASSIFIER, "LoRA": LORA, "prompt tuning": PROMPT_TUNING,
    "Trainer": TRAINER, "SFT": SFT, "streaming chat": STREAMING, "embeddings": EMBEDDINGS, "pipeline": PIPELINE,
}  # fmt: skip


@pytest.fixture
def path(folder: Path, tmp_path: Path) -> str:
    """The model's folder, whose tokenizer both libraries use unchanged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(copy)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_result_that_it_has_with_transformers(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("peft", "trl", "datasets"):
        if f"from {library} import" in RECIPES[name]:
            pytest.importorskip(library)
    results: list[Any] = []
    for library in (puna, transformers):
        monkeypatch.setitem(sys.modules, "llama_library", library)
        scope: dict[str, Any] = {"torch": torch, "path": path, "folder": str(tmp_path / library.__name__)}
        exec(compile(RECIPES[name], name, "exec"), scope)
        results.append(scope["result"])
    if name in ("classifier", "LoRA", "prompt tuning", "Trainer", "SFT", "embeddings"):
        assert flat(results[0]) == pytest.approx(flat(results[1]), abs=2e-3)
    else:
        assert results[0] == results[1]


def flat(value: Any) -> list[float]:
    """Returns the numbers of a result, in order."""
    if isinstance(value, dict):
        value = list(value)
    return [x for item in value for x in flat(item)] if isinstance(value, list | tuple) else [float(value)]
