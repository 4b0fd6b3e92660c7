"""The command `puna chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from puna.cli import options
from puna.cli.chat.conversation import Conversation
from puna.cli.chat.piped import answer_json_lines, answer_texts
from puna.cli.loading import Loader
from puna.cli.terminal import command

if TYPE_CHECKING:
    from puna.llm import Options

FIELDS = {
    "role": "assistant",
    "content": "the answer",
    "finish_reason": "stop (end token) or length (maximum number of tokens)",
    "dropped_messages": "number of oldest messages that were dropped because the context was full",
    "prompt_tokens": "tokens of the conversation before the answer",
    "tokens": "tokens of the answer",
    "prefill_tokens_per_second": "speed of reading the conversation",
    "decode_tokens_per_second": "speed of generating the answer",
}


@command(
    {
        "puna chat": "chat with the default model in the terminal",
        'puna chat -m smollm2 --system "Be brief."': "a part of a downloaded model's name",
        'echo "Name a planet." | puna chat': "piped text is one message; NUL characters separate several messages",
        """echo '{"role": "user", "content": "Hi"}' | puna chat --json""": (
            "each line is a message with a role, a text in quotes, or a list of messages; each user message is answered"
        ),
    },
    FIELDS,
)
def chat(
    model: options.Model = None,
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
    """Chat with a model; /help lists the commands of a chat.

    Enter sends a message, Alt+Enter starts a new line, and pasted text is one message. Ctrl-C stops an answer or clears
    the line; Ctrl-D, exit or /bye leaves. When the context is full, the oldest messages are dropped. Options of
    sampling that are left out have the values of the model's generation_config.json. Without one, a chat in the
    terminal samples with temperature 0.7 and top-p 0.95, and piped messages get the most likely tokens.
    """
    settings = options.answer_options(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
        seed=seed, speculate=speculate, adapter=adapter,
    )  # fmt: skip
    loader = Loader(backend, threads, device, dtype, quantize, max_batch, prefix_cache_dir, adapter=adapter)
    start_chat(loader, model, settings, system, context, json=json, state=state)


def start_chat(
    loader: Loader,
    model: str | None,
    settings: Options,
    system: str | None,
    context: int | None,
    *,
    json: bool,
    state: Path | None,
) -> None:
    """Loads a model and chats: in JSON lines, in the terminal, or with the texts of a pipe."""
    name, llm = loader.load(model)
    conversation = Conversation(name, llm, settings, system, context)
    if json:
        answer_json_lines(conversation)
    elif sys.stdin.isatty():
        from puna.cli.chat.terminal import chat_in_terminal

        chat_in_terminal(conversation, loader, state)
    else:
        answer_texts(conversation)
