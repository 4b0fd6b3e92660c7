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
/help           show this help
/system TEXT    set the system message (no TEXT: remove it) and restart
/reset          restart the conversation
/undo           remove your last message and its answer
/history        show the conversation
/exit           exit (also Ctrl-D); Ctrl-C stops an answer"""


@command
def chat(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum length of an answer in tokens. [default: the rest of the context]"),
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
    """Chat with a model. Type /help for commands such as /system, /undo and /exit."""
    from puna.engine import Sampling
    from puna.llm import LLM

    # Refuses invalid values before the model loads.
    Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with loading(model):
        llm = LLM(model, backend, threads, device=device, dtype=dtype, quantize=quantize)
    settings: Options = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "seed": seed, "speculate": speculate,
    }  # fmt: skip
    conversation = Conversation(llm, settings, system)
    if json:
        _answer_lines(conversation)
    else:
        _run_terminal(conversation)


class Conversation:
    """A conversation with a model: its messages and the settings for answers."""

    def __init__(self, llm: LLM, settings: Options, system: str | None) -> None:
        self.llm = llm
        self.settings = settings
        self.messages: list[dict[str, str]] = []
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Restarts the conversation, with a system message or none."""
        self.system = system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def undo(self) -> None:
        """Removes the last message of the user and its answer."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def say(self, text: str, *, show: bool) -> dict[str, object]:
        """Returns the answer to a message as JSON fields; `show` prints the answer at once and lets Ctrl-C stop it."""
        self.messages.append({"role": "user", "content": text})
        content: list[str] = []
        reason = "interrupted"
        try:
            answer, pieces = self.llm.start(self.messages, **self.settings)
            for piece in pieces:
                content.append(piece)
                if show:
                    write(piece)
            reason = answer.completion().finish_reason
        except KeyboardInterrupt:
            if not show:
                raise
        except PunaError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": "".join(content)})
        return {"role": "assistant", "content": "".join(content), "finish_reason": reason}


def _run_terminal(conversation: Conversation) -> None:
    if sys.stdin.isatty():
        import readline  # noqa: F401  # adds line editing, history, and lines longer than the terminal's 4,095 bytes
    console = stderr_console()
    console.print("Type /help for a list of commands, /exit to exit.", style="dim")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if line in ("/exit", "/quit"):
            return
        if line.startswith("/"):
            console.print(_run_command(conversation, line), markup=False, style="dim")
        elif line:
            try:
                conversation.say(line, show=True)
            except PunaError as exc:
                console.print(f"{exc}; or restart the conversation with /reset", markup=False, style="red")
            write("\n")


def _run_command(conversation: Conversation, line: str) -> str:
    """Runs a `/` command; returns the message for the user."""
    name, _, argument = line.partition(" ")
    if name == "/help":
        return HELP
    if name == "/reset":
        conversation.reset(conversation.system)
        return "Conversation restarted."
    if name == "/system":
        conversation.reset(argument.strip() or None)
        return f"System message {'set' if conversation.system else 'removed'}; conversation restarted."
    if name == "/undo":
        conversation.undo()
        return f"Messages left: {len(conversation.messages)}."
    if name == "/history":
        return "\n".join(f"{message['role']}: {message['content']}" for message in conversation.messages) or "Empty."
    return f"{name} is not a command.\n{HELP}"


def _answer_lines(conversation: Conversation) -> None:
    """Reads a message, plain or as a JSON string, from each line of standard input; prints each answer as JSON."""
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
