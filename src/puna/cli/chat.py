"""`puna chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, loading, print_json, stderr_console, write
from puna.errors import PunaError, RequestError

if TYPE_CHECKING:
    from puna.llm import LLM, Options

HELP = """\
/help           show this
/system TEXT    set the system message and start anew (without TEXT: none)
/reset          forget the conversation
/undo           take back your last message and its answer
/history        show the conversation
/exit           leave (also Ctrl-D); Ctrl-C stops an answer"""


@command
def chat(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer. [default: what the context holds]")
    ] = None,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.95,
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
    """Talk with a model; it remembers the conversation. /help lists what you can say to puna itself."""
    from puna.engine import Sampling
    from puna.llm import LLM

    Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)  # refuse bad values before a long load
    with loading(model):
        llm = LLM(model, backend, threads, device=device, dtype=dtype, quantize=quantize)
    settings: Options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "speculate": speculate,
    }
    conversation = Conversation(llm, settings, system)
    if json:
        _serve_lines(conversation)
    else:
        _talk(conversation)


class Conversation:
    """The messages so far, and how the model answers them."""

    def __init__(self, llm: LLM, settings: Options, system: str | None) -> None:
        self.llm = llm
        self.settings = settings
        self.messages: list[dict[str, str]] = []
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Starts anew, with a system message or none."""
        self.system = system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def undo(self) -> None:
        """Takes back the last message of the user and what followed."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def say(self, text: str, *, show: bool) -> dict[str, object]:
        """Sends a message and returns the answer; an answer stopped by Ctrl-C keeps what had come."""
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        reason = "interrupted"
        try:
            answer, pieces = self.llm.start(self.messages, **self.settings)
            for piece in pieces:
                said.append(piece)
                if show:
                    write(piece)
            reason = answer.completion().finish_reason
        except KeyboardInterrupt:
            if not show:
                raise
        except PunaError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": "".join(said)})
        return {"role": "assistant", "content": "".join(said), "finish_reason": reason}


def _talk(conversation: Conversation) -> None:
    if sys.stdin.isatty():
        import readline  # noqa: F401  # line editing, history, and lines longer than a terminal's 4,095 bytes
    console = stderr_console()
    console.print("/help lists commands, /exit leaves.", style="dim")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if line in ("/exit", "/quit"):
            return
        if line.startswith("/"):
            console.print(_obey(conversation, line), markup=False, style="dim")
        elif line:
            try:
                conversation.say(line, show=True)
            except PunaError as exc:
                console.print(f"{exc}; or /reset to start anew", markup=False, style="red")
            write("\n")


def _obey(conversation: Conversation, line: str) -> str:
    """Carries out a `/` command; returns what to tell the user."""
    name, _, rest = line.partition(" ")
    if name == "/help":
        return HELP
    if name == "/reset":
        conversation.reset(conversation.system)
        return "Forgotten."
    if name == "/system":
        conversation.reset(rest.strip() or None)
        return "System message set; the conversation starts anew."
    if name == "/undo":
        conversation.undo()
        return f"{len(conversation.messages)} messages left."
    if name == "/history":
        return "\n".join(f"{message['role']}: {message['content']}" for message in conversation.messages) or "Empty."
    return f"{name} is not a command.\n{HELP}"


def _serve_lines(conversation: Conversation) -> None:
    """For machines: a message per line of standard input, plain or as a JSON string; an answer per line of output."""
    import json as json_format

    for line in sys.stdin:
        text = line.strip()
        if text.startswith('"'):
            try:
                text = json_format.loads(text)
            except ValueError as exc:
                raise RequestError(f"a line begins with a quote but is not a JSON string: {exc}") from exc
        if text:
            print_json(conversation.say(text, show=False))
            sys.stdout.flush()
