"""The table of commands, and the classes that load a command when it is used and print its help."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from puna.cli.terminal import from_command_line, from_environment, set_verbosity

COMMANDS = {
    "Run a model": {
        "run": ("run:run", "Chat with a model, or answer one prompt."),
        "chat": ("chat.command:chat", "Chat with a model; /help lists the commands of a chat."),
        "generate": ("generate:generate", "Continue a prompt."),
        "serve": ("server.serve:serve", "Serve a model: OpenAI's and Anthropic's interfaces, and a chat page."),
        "top": ("server.top:top", "Show the speed, queue and caches of a server, live."),
        "embed": ("texts.embed:embed", "Print the embeddings of texts."),
        "classify": ("texts.classify:classify", "Print the labels of texts."),
    },
    "Models on this machine": {
        "list": ("list_models:list_models", "List the models that are ready to use."),
        "pull": ("pull:pull", "Download a model from the Hugging Face hub and print its path."),
        "rm": ("remove:remove", "Delete a downloaded model."),
        "convert": (
            "convert:convert",
            "Convert a model to another layout (Hugging Face, Meta, GGUF) or type, or quantise it.",
        ),
        "merge": ("merge:merge", "Write a model with the changes of an adapter (LoRA, DoRA, IA3) in its weights."),
    },
    "Train": {
        "train sft": (
            "train.sft:sft",
            "Teach a model from chats, prompts with answers, or texts (supervised fine-tuning).",
        ),
        "train classify": (
            "train.classify:classify",
            "Teach a model to classify texts: one label, several labels, or a number.",
        ),
        "train pretrain": (
            "train.pretrain:pretrain",
            "Train a small model on plain text, from random weights or from a model.",
        ),
        "train resume": ("train.resume:resume", "Continue an interrupted run after its last saved state."),
        "train watch": ("train.watch:watch", "Show the progress of a run of another process, live."),
        "train runs": ("train.runs:runs", "List the runs in a folder: status, loss, settings and result of each."),
        "train preview": (
            "train.preview:preview",
            "Show what a model will see of its training data: text, learned tokens, lengths, bad rows.",
        ),
        "tokenizer train": ("texts.train_tokenizer:train_tokenizer", "Train a tokenizer on text files."),
    },
    "Inspect": {
        "inspect": ("inspect:inspect", "Show a checkpoint's format, sizes and errors without loading it."),
        "tokenize": ("texts.tokenize:tokenize", "Show the tokens of a text."),
        "info": ("info:info", "Show the version, and this machine's CPU features, threads and backends."),
    },
    "Measure": {
        "bench": ("measure.bench:bench", "Measure a model's speed and compare it with the machine's limits."),
        "profile": ("measure.profile:profile", "Show the time per token of each kernel."),
        "perplexity": ("measure.perplexity:perplexity", "Measure the perplexity of a model on a text."),
        "eval perplexity": (
            "evaluate.perplexity:perplexity",
            "Measure the perplexity of documents, as lm-eval does.",
        ),
        "eval choice": ("evaluate.choice:choice", "Measure how often the right choice is the most likely."),
        "eval classify": ("evaluate.classify:classify", "Measure a classifier on a labelled file."),
    },
}
"""For each heading: name, "module:function" below `puna.cli`, and the first sentence of the function's docstring.

A name of two words is a command of a group: `train sft` is the command `sft` of the group `train`.
"""

GROUPS: dict[str, str] = {
    "eval": "Evaluate a model on your own data, with the definitions of lm-eval.",
    "train": "Train a model, or an adapter of a model, on your own data.",
    "tokenizer": "Train a tokenizer.",
}
"""The groups of commands, each with its help."""

_TARGETS = {name: target for commands in COMMANDS.values() for name, (target, _) in commands.items()}


class Command(TyperCommand):
    """A command with the options --quiet and --verbose; its help ends with examples and the fields of its JSON."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            _flag("-q", "--quiet", "Print only the result: no notes, progress or speed."),
            _flag("-v", "--verbose", "Also print the steps and their times; with an error, where it was raised."),
        ]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments; explains how to give a model if an argument is left over; refuses two adapters."""
        all_args = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except Exception as exc:
            message = getattr(exc, "message", "")
            if "unexpected extra argument" in message and any("--model" in param.opts for param in self.params):
                exc.message = f"{message}; give the model with --model"  # type: ignore[attr-defined]
            raise
        _, _, order = self.make_parser(ctx).parse_args(all_args)
        if sum(param.name == "adapter" for param in order) > 1:
            raise typer.BadParameter("--adapter is given twice; a model runs with one adapter")
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Runs the command with the requested verbosity."""
        quiet, verbose = ctx.params.pop("quiet"), ctx.params.pop("verbose")
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose contradict each other; leave one out")
        sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
        from_environment.clear()
        from_environment.update(str(ctx.params[name]) for name in sources if "ENVIRONMENT" in str(sources[name]))
        from_command_line.clear()
        from_command_line.update(name for name in sources if "COMMANDLINE" in str(sources[name]))
        set_verbosity(quiet=quiet, verbose=verbose)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments and the options, in the sections that the options name."""
        sections: dict[str, list[Any]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            default = "Arguments" if param.param_type_name == "argument" else "Options"
            name = getattr(param, "rich_help_panel", None) or default
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(name, []).append(record)
        sections["Options"] = sections.pop("Options")  # the sections with names precede the options of every command
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples and the fields of the JSON output."""
        examples: dict[str, str] = getattr(self.callback, "examples", {})
        fields: dict[str, str] = getattr(self.callback, "fields", {})
        with formatter.section("Examples"):
            for line, purpose in examples.items():
                formatter.write(f"  {line}\n      {purpose}\n")
        if fields:
            with formatter.section("Fields of --json"):
                formatter.write_dl(list(fields.items()))


def _flag(short: str, name: str, text: str) -> TyperOption:
    return TyperOption(param_decls=[short, name], is_flag=True, default=False, help=text)


class _Commands(MutableMapping[str, Any]):
    """Commands by name; a command's module is imported when the command is first looked up.

    Args:
        group: name of the group that contains the commands; "" for the commands of `puna` itself.
    """

    def __init__(self, group: str = "") -> None:
        self._prefix = f"{group} " if group else ""
        names = (name.removeprefix(self._prefix) for name in _TARGETS if name.startswith(self._prefix))
        self._commands: dict[str, Any] = dict.fromkeys(name.split()[0] for name in names)

    def __getitem__(self, name: str) -> Any:
        if self._commands[name] is None:
            self._commands[name] = _load(self._prefix + name, name)
        return self._commands[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


def _load(full_name: str, name: str) -> Any:
    """Returns a group, or imports the module of a command and returns the command."""
    if full_name in GROUPS:
        return _SubGroup(full_name)
    module, _, function = _TARGETS[full_name].partition(":")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name, cls=Command)(getattr(importlib.import_module(f"puna.cli.{module}"), function))
    return get_command(app)


class _SubGroup(TyperGroup):
    """A group of commands, such as `puna train`; without a command it prints its help."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, help=GROUPS[name], no_args_is_help=True, rich_markup_mode=None)
        self.commands = _Commands(name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands of the group."""
        texts = {name: text for commands in COMMANDS.values() for name, (_, text) in commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, texts[f"{self.name} {name}"].removesuffix(".")) for name in self.commands])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes where the options are described."""
        formatter.write_paragraph()
        formatter.write_text(f"puna {self.name} COMMAND --help shows the options of a command, with examples.")


class CommandGroup(TyperGroup):
    """The command `puna`. Its help is plain text, because help drawn by rich takes twice as long."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.commands = _Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the headings, each with its commands."""
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, text.removesuffix(".")) for name, (_, text) in commands.items()])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the environment variables and exit statuses of all commands."""
        with formatter.section("Environment"):
            formatter.write_dl(
                [
                    ("PUNA_MODEL", "Default of --model."),
                    ("PUNA_THREADS", "Default of --threads."),
                    ("PUNA_API_KEYS", "Keys of puna serve, separated by commas; puna top sends the first."),
                    ("HF_HOME, HF_TOKEN", "Folder of downloaded models; access to restricted models of the hub."),
                ]
            )
        with formatter.section("Exit status"):
            formatter.write_text("0 success, 1 failure, 2 invalid command line, 130 interrupted by Ctrl-C")
        formatter.write_paragraph()
        formatter.write_text("puna COMMAND --help shows the options of a command, with examples.")
