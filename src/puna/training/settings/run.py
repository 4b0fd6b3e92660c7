"""Options of every run: the model, the data, the length of the training, and where the result is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The model, the data, the length of the training, and the files of the result."""

    model: str = option("", "the model to train: a local path, or owner/name on the hub")
    data: tuple[str, ...] | str | None = option(None, "files, folders or hub data sets with the training data")
    task: str = option("sft", "what is learned: sft, classify or pretrain")
    method: str = option("lora", "what trains: full, lora, qlora, ia3, prompt, prefix, ptuning or bottleneck")
    output: str | None = option(None, "folder of the result; by default runs/MODEL-TASK-METHOD, numbered if it exists")
    overwrite: bool = option(False, "replace an earlier result in the output folder")
    resume: bool = option(False, "continue the unfinished run in the output folder")
    seed: int = option(0, "seed of the order of the data, of new parameters and of dropout", at_least=0, below=2**63)
    dtype: Literal["bfloat16", "float32"] = option(
        "bfloat16", "type of the frozen weights and of the activations; trained parameters are float32"
    )
    steps: int | None = option(None, "number of optimizer steps; by default what the epochs need", at_least=1)
    epochs: float | None = option(None, "passes over the data; 3 without steps", above=0, at_most=1_000_000_000)
    batch_size: int = option(8, "documents of one optimizer step", at_least=1, at_most=1_000_000)
    micro_batch_tokens: int = option(
        2048, "maximum number of tokens in one forward pass, which has at least one document. It limits the memory "
        "and never changes the result. With qlora or quantized, the default is 512",
        at_least=1,
    )  # fmt: skip
    max_length: int = option(1024, "tokens of a document at most", at_least=2)
    max_memory: str | None = option(
        None, "memory of the process, such as 2GB: lowers micro_batch_tokens and sets gradient_checkpointing, as needed"
    )
    max_time: str | None = option(None, "time of the run, such as 10min: lowers the number of steps, as needed")
    threads: int | None = option(None, "processor threads; by default one per core", at_least=1, at_most=256)
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    activation_cache: str | None = option(
        None, "memory, such as 1GB, for the activations that enter the lowest layer that trains, which later epochs "
        "reuse; a temporary file in the output folder has the rest",
    )  # fmt: skip
    forward: Literal["auto", "fused", "reference", "served"] = option(
        "auto", "implementation of the forward and backward pass; served: losses from exactly the log-probabilities of "
        "LLM and puna serve, for LoRA and IA3",
    )  # fmt: skip
