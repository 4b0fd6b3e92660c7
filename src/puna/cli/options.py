"""Options that several commands share, written once."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A folder, a GGUF file, or owner/name of the hub. [default: SmolLM2-135M-Instruct]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Backend = Annotated[str, typer.Option(help="auto, torch or native.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Processor threads. [default: one per physical core]"),
]
Device = Annotated[str | None, typer.Option(help="A PyTorch device such as cuda.")]
Dtype = Annotated[str | None, typer.Option(help="Type to compute in, such as bfloat16.")]
Quantize = Annotated[
    str | None,
    typer.Option(help="Round float weights to q8_0, q4_0 or q4_K as they are loaded."),
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes seen tokens less likely.")]
Speculate = Annotated[
    bool, typer.Option("--speculate", help="Guess tokens from the text so far: same answer, sooner if it repeats.")
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
