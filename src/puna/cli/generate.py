"""`puna generate`: continue a prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, loading, print_json, read_text, stderr_console, write

if TYPE_CHECKING:
    from puna.answer import Completion


@command
def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue, or - for standard input.")],
    model: options.Model = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Maximum number of tokens to generate.")] = 256,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a chat message.")] = False,
    system: Annotated[str | None, typer.Option(help="System message; requires --chat.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")] = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    speculate: options.Speculate = False,
    json: options.Json = False,
) -> None:
    """Continue a prompt. The text is printed while it is generated."""
    from puna.engine import Sampling
    from puna.llm import LLM

    if system is not None and not chat:
        raise typer.BadParameter("--system requires --chat", param_hint="--system")
    text = read_text(prompt, "the prompt")
    # Refuses invalid values before the model loads.
    Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with loading(model):
        llm = LLM(model, backend, threads, device=device, dtype=dtype, quantize=quantize)
    messages = [] if system is None else [{"role": "system", "content": system}]
    answer, pieces = llm.start(
        [*messages, {"role": "user", "content": text}] if chat else text,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        speculate=speculate,
    )
    if json:
        for _ in pieces:
            pass
        print_json(_report(answer.completion()))
        return
    if not chat:
        write(text)
    for piece in pieces:
        write(piece)
    write("\n")
    _print_speed(answer.completion())


def _report(completion: Completion) -> dict[str, object]:
    names = (
        "prompt_ids", "ids", "text", "finish_reason", "prefill_tokens_per_second", "decode_tokens_per_second",
    )  # fmt: skip
    return {name: getattr(completion, name) for name in names}


def _print_speed(completion: Completion) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        console = stderr_console()
        console.print(
            f"prompt: {len(completion.prompt_ids)} tokens at {completion.prefill_tokens_per_second:.0f}/s, "
            f"answer: {len(completion.ids)} tokens at {completion.decode_tokens_per_second:.0f}/s",
            style="dim",
        )
