"""`puna generate`: continue a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.loading import Loader
from puna.cli.prompt import read_prompt
from puna.cli.terminal import command, detail, is_quiet, is_watched, print_json, status, stderr_console, write
from puna.cli.wrap import wrapped_output
from puna.errors import RequestError

if TYPE_CHECKING:
    from puna.answer import Completion
    from puna.llm import LLM, Options

LONG_PROMPT = 256
"""For prompts with more tokens, a status line shows that the prompt is being read."""

FIELDS = {
    "prompt_ids": "token ids of the prompt",
    "ids": "token ids of the answer",
    "text": "the answer, without the prompt",
    "finish_reason": "stop (end token or stop string), length (maximum number of tokens), or invalid (not as the "
    "schema, expression or grammar requires)",
    "prefill_tokens_per_second": "speed of reading the prompt",
    "decode_tokens_per_second": "speed of generating the answer",
}


@command(
    {
        'puna generate "Gravity is" -n 20': "continue a text with at most 20 tokens",
        """puna generate --chat "Is 7 prime?" --choice yes --choice no""": "choose one of two answers",
        'cat notes.txt | puna generate --chat "Summarise:"': "standard input is appended to the prompt",
        "puna generate -f prompt.txt --json": "read the prompt from a file, print JSON",
    },
    FIELDS,
)
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="Text to continue. Files and piped standard input are appended; - is standard input only.",
        ),
    ] = None,
    prompt_option: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The same as PROMPT.")
    ] = None,
    file: options.File = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    max_tokens: options.MaxTokens = None,
    context: options.Context = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a chat message.")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message; requires --chat.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text that ends the answer; repeatable.")
    ] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    typical_p: options.TypicalP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    min_tokens: options.MinTokens = None,
    ignore_eos: options.IgnoreEos = None,
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
) -> None:
    """Continue a prompt.

    The continuation is printed while it is generated, after the prompt if that is an argument; with --quiet, only the
    continuation is printed. Options of sampling that are left out have the values of the model's
    generation_config.json; without one, the most likely token is chosen.
    """
    if prompt is not None and prompt_option is not None:
        raise typer.BadParameter("the prompt is given twice; leave out --prompt", param_hint="--prompt")
    if system is not None and not chat:
        raise typer.BadParameter("--system requires --chat", param_hint="--system")
    settings = options.answer_options(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
        min_tokens=min_tokens, ignore_eos=ignore_eos, seed=seed, stop=stop or None, speculate=speculate,
        adapter=adapter,
        json_schema=json_schema, regex=regex, grammar=grammar, choice=choice or None,
    )  # fmt: skip
    argument = prompt if prompt_option is None else prompt_option
    text = read_prompt(argument, file or [])
    if text is None or argument == text == "":
        raise typer.BadParameter(
            'there is no prompt; give one, such as puna generate "Gravity is", or --file FILE, or pipe a text into '
            "standard input",
            param_hint="PROMPT or --prompt",
        )
    _, llm = Loader(backend, threads, device, dtype, quantize, max_batch, prefix_cache_dir, adapter=adapter).load(model)
    answer_prompt(llm, text, chat=chat, system=system, context=context, settings=settings, json=json,
                  echo=not chat and argument in (text, "-"))  # fmt: skip


def answer_prompt(
    llm: LLM, text: str, *, chat: bool, system: str | None, context: int | None, settings: Options, json: bool,
    echo: bool, fill: bool = False,
) -> None:  # fmt: skip
    """Prints the answer to a prompt, as text or JSON; `echo` prints the prompt first.

    With `fill`, the answer may fill the context if neither the settings nor the model limit it.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    prompt = [*messages, {"role": "user", "content": text}] if chat else text
    if context is not None or (fill and "max_tokens" not in settings):
        settings = within_context(llm, prompt, context, settings, fill)
    answer, pieces = llm.start(prompt, **settings)
    first = first_piece(pieces, len(answer.request.prompt_ids))
    if json:
        for _ in pieces:
            pass
        print_json(_report(answer.completion()))
        return
    with wrapped_output() as show:
        if echo and not is_quiet():
            show(text)
        for piece in itertools.chain([first], pieces):
            show(piece)
    write("\n")
    _print_speed(answer.completion(), llm.longest_text(settings.get("adapter")) if context is None else context)


def first_piece(pieces: Iterator[str], prompt_tokens: int) -> str:
    """Returns the first piece of an answer, "" if there is none; shows a status line while a long prompt is read."""
    text = f"Reading {prompt_tokens:,} tokens ..."
    with status(text) if prompt_tokens > LONG_PROMPT else nullcontext():
        return next(pieces, "")


def within_context(
    llm: LLM, prompt: str | list[dict[str, str]], context: int | None, settings: Options, fill: bool
) -> Options:
    """Returns the settings with a maximum number of tokens that keeps prompt and answer within `context`.

    Args:
        context: None means the model's.
        fill: whether the answer may fill the context, if neither the settings nor the model limit it.

    Raises:
        RequestError: the prompt fills the context, or the model's context is shorter.
    """
    from puna.options import settings_of

    tokens, longest = count_tokens(llm, prompt), llm.longest_text(settings.get("adapter"))
    if context is None:
        context = longest
    if context > longest:
        raise RequestError(f"--context is {context}, but the model's context is {longest}; lower --context")
    if tokens >= context:
        remedy = "raise --context" if context < longest else "shorten the prompt"
        raise RequestError(f"the prompt has {tokens} tokens, which fill the context of {context}; {remedy}")
    default = {"default": None} if fill else {}
    maximum = settings_of(settings, llm.generation_config, tokens, context, **default).max_tokens
    return {**settings, "max_tokens": min(maximum, context - tokens)}


def count_tokens(llm: LLM, prompt: str | list[dict[str, str]]) -> int:
    """Returns the number of tokens of a text or a rendered conversation."""
    if isinstance(prompt, str):
        return len(llm.tokenizer.encode(prompt))
    return len(llm.tokenizer.apply_chat_template(prompt, add_generation_prompt=True))


def _report(completion: Completion) -> dict[str, object]:
    return {name: getattr(completion, name) for name in FIELDS}


def _print_speed(completion: Completion, context: int) -> None:
    used = len(completion.prompt_ids) + len(completion.ids)
    limit = ", context full" if used >= context else ", maximum length"
    text = (
        f"prompt: {len(completion.prompt_ids)} tokens at {completion.prefill_tokens_per_second:.0f}/s, "
        f"answer: {len(completion.ids)} tokens at {completion.decode_tokens_per_second:.0f}/s"
        f"{limit if completion.finish_reason == 'length' else ''}"
    )
    if is_watched():
        stderr_console().print(text, style="dim")
    else:
        detail(text)
