"""Worker of train.py: complete training steps of puna, of transformers with peft, and of trl's SFTTrainer.

A step has a forward and a backward pass of `documents` documents of `length` random tokens, clips the norm of the
gradient at 1, and changes the parameters by AdamW.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers.serve import answer, peak_memory

Step = Callable[[], Any]

RANK = 16
RATE = 1e-4
CLIP = 1.0


def random_ids(load: dict[str, Any], rows: int) -> np.ndarray:
    """Returns random token ids, (rows, length)."""
    return np.random.default_rng(0).integers(3, load["vocabulary"], (rows, load["length"]))


def open_puna(load: dict[str, Any]) -> Step:
    """Prepares steps of puna's forward pass and optimizer, with the method `load["method"]`."""
    from puna.model import LlamaForCausalLM
    from puna.training.batch import Batch, Example, Source
    from puna.training.forward.choice import forward_for
    from puna.training.methods.table import METHODS
    from puna.training.optimizers.adamw import AdamW
    from puna.training.plan import group
    from puna.training.settings import TrainingSettings, task_defaults

    method = METHODS[load["method"]]
    values = {"method": method.name, "dtype": load["dtype"], **({} if method.name == "full" else {"rank": RANK})}
    settings = TrainingSettings.of({**task_defaults("sft", values), **values})
    dtype = getattr(torch, load["dtype"])
    model = LlamaForCausalLM.from_pretrained(load["model"], dtype=dtype, keep_quantized=method.keep_quantized)
    trainable = method.attach(model, None, settings)
    trainable.model.eval()
    forward = forward_for(trainable)
    forward.training = True
    optimizer = AdamW(trainable.parameters, settings)
    weights = np.r_[0, np.ones(load["length"] - 1)].astype(np.float32)
    ids = random_ids(load, load["documents"]).astype(np.int32)
    examples = [Example(row, weights, None, Source("random", i)) for i, row in enumerate(ids)]
    batches = [
        Batch.of([examples[i] for i in places], 0) for places in group(examples, settings.micro_batch_tokens, True)
    ]
    weight = sum(batch.total_weight for batch in batches)

    def step() -> None:
        for batch in batches:
            forward.losses(batch, 1 / weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step(RATE, min(1.0, CLIP / (optimizer.gradient_norm() + 1e-6)))
        trainable.after_step()
        optimizer.zero_gradients()

    return step


def open_transformers(load: dict[str, Any]) -> Step:
    """Prepares steps of transformers, with peft for the method lora."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        load["model"], dtype=getattr(torch, load["dtype"]), attn_implementation="sdpa"
    )
    model.config.use_cache = False
    if load["method"] == "lora":
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    ids = torch.from_numpy(random_ids(load, load["documents"]))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if load["autocast"] else contextlib.nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def open_trl(load: dict[str, Any]) -> Step:
    """Starts SFTTrainer in a thread, which makes one step whenever the result is called."""
    import datasets
    import peft
    import transformers
    import trl

    begin, waiting = threading.Semaphore(0), threading.Semaphore(0)

    class Steps(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            waiting.release()
            begin.acquire()

    model = transformers.AutoModelForCausalLM.from_pretrained(load["model"], dtype=getattr(torch, load["dtype"]))
    rows = random_ids(load, 64 * load["documents"]).tolist()
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(
            output_dir=str(Path(load["model"]).parent / "trl"), per_device_train_batch_size=load["documents"],
            max_steps=64, max_length=load["length"], learning_rate=RATE, max_grad_norm=CLIP, optim="adamw_torch_fused",
            bf16=load["autocast"], use_cpu=True, gradient_checkpointing=False, save_strategy="no", report_to=[],
            logging_steps=1000, disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows}),
        processing_class=transformers.AutoTokenizer.from_pretrained(load["model"]),
        peft_config=peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Steps()],
    )  # fmt: skip

    def train() -> None:
        torch.set_num_threads(load["threads"])  # a setting of each thread
        trainer.train()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()

    def wait() -> None:
        while not waiting.acquire(timeout=1):
            if not thread.is_alive():
                raise RuntimeError("SFTTrainer ended before its next step; the log has its error")

    wait()

    def step() -> None:
        begin.release()
        wait()

    return step


OPEN = {"puna": open_puna, "transformers": open_transformers, "trl": open_trl}


def main() -> None:
    """Answers the requests "load", "step" and "memory" (peak bytes of the process)."""
    steps: list[Step] = []

    def handle(request: dict[str, Any]) -> Any:
        if request["do"] == "memory":
            return peak_memory()
        if request["do"] == "load":
            torch.set_num_threads(request["threads"])
            steps.append(OPEN[request["engine"]](request))
            return None
        started = time.perf_counter()
        steps[0]()
        return {"seconds": time.perf_counter() - started}

    answer(handle)


if __name__ == "__main__":
    main()
