"""Fine-tunes on plain text with puna and with transformers, and compares the loss of held-out text.

    python benchmarks/train_sft.py tinyshakespeare.txt --model FOLDER [--method lora|full] [--steps 60]

FOLDER is a model in Hugging Face's layout (`puna convert MODEL FOLDER --to hf`). The last tenth of the text is held
out. Both trainers have the same documents (256 tokens), order, batches, AdamW, linear schedule and clipping;
transformers computes bfloat16 under autocast, with peft for LoRA of rank 16. Transformers evaluates both results
(peft reads the adapter of puna). Prints a JSON object: nats per token before and after, the reductions and their
ratio, and the processor time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from puna import load_tokenizer, train
from puna.training.batch import Batch
from puna.training.plan import plan_run
from puna.training.settings import TrainingSettings
from puna.training.tasks.sft import SupervisedFineTuning


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the hyper-parameters, as options of `puna.train`."""
    return {
        "method": arguments.method, "steps": arguments.steps, "batch_size": 4, "max_length": 256, "truncate": "split",
        "learning_rate": arguments.rate, "dtype": arguments.dtype, "micro_batch_tokens": 1024,
        "threads": arguments.threads, **({"rank": 16, "alpha": 32.0} if arguments.method == "lora" else {}),
    }  # fmt: skip


def padded(batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the documents of some batches in rows, and their labels: (documents, longest)."""
    rows = [row for batch in batches for row in torch.from_numpy(batch.ids).split(batch.lengths)]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, True, 0), pad(rows, True, -100)


class Peer:
    """A model of transformers, with an adapter of peft for LoRA."""

    def __init__(self, arguments: argparse.Namespace, folder: str | None = None) -> None:
        torch.manual_seed(0)
        dtype = getattr(torch, arguments.dtype)
        path = folder if folder and arguments.method == "full" else arguments.model
        # a model that trains completely has float32 weights, as puna's master weights
        weights = torch.float32 if arguments.method == "full" else dtype
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=weights)
        self.autocast = torch.autocast("cpu", torch.bfloat16) if dtype is torch.bfloat16 else nullcontext()
        if arguments.method == "lora" and folder:
            self.model = peft.PeftModel.from_pretrained(self.model, folder)
        elif arguments.method == "lora":
            config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = peft.get_peft_model(self.model, config)
            for parameter in (item for item in self.model.parameters() if item.requires_grad):
                parameter.data = parameter.data.float()

    def loss(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of the tokens."""
        with self.autocast:
            result: torch.Tensor = self.model(input_ids=ids, attention_mask=(labels != -100).long(), labels=labels).loss
        return result

    def train(self, batches: list[list[Batch]], rate: float) -> float:
        """Trains; returns the seconds of the steps."""
        trained = [item for item in self.model.parameters() if item.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
        schedule = transformers.get_scheduler("linear", optimizer, 0, len(batches))
        started = time.perf_counter()
        for window in batches:
            self.loss(*padded(window)).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return time.perf_counter() - started

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> float:
        """Returns the loss of held-out documents in nats per token."""
        self.model.eval()
        total = count = 0.0
        for batch in batches:
            ids, labels = padded([batch])
            tokens = int((labels[:, 1:] != -100).sum())
            total, count = total + float(self.loss(ids, labels)) * tokens, count + tokens
        return total / count


def main() -> None:
    """Trains with both, and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", required=True, help="folder in Hugging Face's layout")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--held-out", type=int, default=32, help="documents of 256 tokens that are evaluated")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options, tokenizer = options_of(arguments), load_tokenizer(arguments.model)
    text = arguments.text.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder, name) for name in ("train.txt", "held-out.txt")]
        parts[0].write_text(text[: len(text) * 9 // 10])
        parts[1].write_text(text[len(text) * 9 // 10 :])
        settings = TrainingSettings.of({"model": arguments.model, "data": str(parts[0]), **options})
        documents, others = (SupervisedFineTuning().read(str(part), settings, tokenizer) for part in parts)
        held_out = [Batch.of([others[index]], 0) for index in range(min(arguments.held_out, len(others)))]
        plan = plan_run(documents, None, settings)
        started = time.process_time()
        result = train(arguments.model, str(parts[0]), output=Path(folder, "result"), **options)
        seconds = {"puna": time.process_time() - started}
        peer, started = Peer(arguments), time.process_time()
        losses = {"before": peer.evaluate(held_out)}
        peer.model.train()
        started = time.process_time()
        peer.train([plan.window(step) for step in range(plan.steps)], arguments.rate)
        seconds["transformers"] = time.process_time() - started
        losses |= {"transformers": peer.evaluate(held_out)}
        losses |= {"puna": Peer(arguments, str(result.path)).evaluate(held_out)}
    gains = {name: losses["before"] - losses[name] for name in ("puna", "transformers")}
    print(json.dumps({"losses": losses, "gains": gains, "ratio": gains["puna"] / gains["transformers"],
                      "processor_seconds": seconds}))  # fmt: skip


if __name__ == "__main__":
    main()
