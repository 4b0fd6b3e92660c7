"""`puna run`: chat with a model, or answer one prompt."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.chat.command import start_chat
from puna.cli.generate import FIELDS, answer_prompt
from puna.cli.loading import Loader
from puna.cli.prompt import read_prompt
from puna.cli.terminal import command, note
from puna.errors import ModelNotFoundError, RequestError


@command(
    {
        "puna run HuggingFaceTB/SmolLM2-135M-Instruct": "chat; the model is downloaded if needed",
        'puna run model.gguf "Name a planet."': "answer one prompt",
        'cat notes.txt | puna run smollm2 "Summarise:"': "a part of a downloaded model's name; the text is appended",
    },
    FIELDS,
)
def run(
    model: options.ModelArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="Message to answer; without one, a chat begins. Files and piped input are appended.",
        ),
    ] = None,
    file: options.File = None,
    adapter: options.Adapter = None,
    system: options.System = None,
    max_tokens: options.AnswerTokens = None,
    context: options.Context = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    typical_p: options.TypicalP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    seed: options.Seed = None,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = None,
    grammar: options.Grammar = None,
    choice: options.Choice = None,
    speculate: options.Speculate = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    max_batch: options.MaxBatch = 1,
    prefix_cache_dir: options.PrefixCacheDir = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
    state: options.StateFolder = None,
) -> None:
    """Chat with a model, or answer one prompt.

    A model without a chat template continues the prompt instead. Without a prompt, this is puna chat --model MODEL.
    """
    settings = options.answer_options(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
        seed=seed, speculate=speculate, adapter=adapter,
        json_schema=json_schema, regex=regex, grammar=grammar, choice=choice or None,
    )  # fmt: skip
    loader = Loader(backend, threads, device, dtype, quantize, max_batch, prefix_cache_dir, adapter=adapter)
    if prompt is None and not file:
        with _forgotten_model(model):
            start_chat(loader, model, settings, system, context, json=json, state=state)
        return
    text = read_prompt(prompt, file or [])
    assert text is not None
    _, llm = loader.load(model)
    chat = llm.tokenizer.chat_template is not None
    if not chat:
        note("puna: the model has no chat template, so it continues the prompt")
        if system is not None:
            raise RequestError("the model has no chat template; leave out --system")
    answer_prompt(llm, text, chat=chat, system=system, context=context, settings=settings, json=json, echo=False,
                  fill=True)  # fmt: skip


@contextmanager
def _forgotten_model(model: str) -> Iterator[None]:
    """Context manager: explains how to use the default model, if the only argument is not a model but a prompt."""
    try:
        yield
    except ModelNotFoundError as exc:
        if "/" in model:
            raise
        hint = f"To answer a prompt with the default model: puna generate --chat {shlex.quote(model)}"
        raise ModelNotFoundError(f"{str(exc).removesuffix('.')}. {hint}") from exc
