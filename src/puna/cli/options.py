"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder, GGUF file, or owner/name on the hub. [default: SmolLM2-135M-Instruct]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Backend = Annotated[str, typer.Option(help="Execution backend: auto, torch or native.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Number of CPU threads. [default: one per physical core]"),
]
Device = Annotated[str | None, typer.Option(help="PyTorch device, such as cuda.")]
Dtype = Annotated[str | None, typer.Option(help="Type for computation, such as bfloat16.")]
Quantize = Annotated[
    str | None,
    typer.Option(help="Quantise float weights while loading: q8_0, q4_0 or q4_K."),
]
Temperature = Annotated[
    float, typer.Option("--temperature", "-t", help="Sampling temperature; 0 always chooses the most likely token.")
]
TopK = Annotated[int, typer.Option(help="Sample from the k most likely tokens only; 0 means all.")]
TopP = Annotated[float, typer.Option(help="Sample from the most likely tokens whose probabilities add up to p.")]
MinP = Annotated[float, typer.Option(help="Exclude tokens with less than this fraction of the highest probability.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Values above 1 make tokens that occurred before less likely.")]
Speculate = Annotated[
    bool, typer.Option("--speculate", help="Guess tokens from earlier text: same answer, faster if text repeats.")
]
Seed = Annotated[int | None, typer.Option(help="Random seed, for reproducible sampling.")]
