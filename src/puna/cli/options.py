"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from puna.cli.models import complete_model
from puna.cli.prompt import read_file
from puna.cli.terminal import usage_errors
from puna.errors import show

if TYPE_CHECKING:
    from puna.llm import Options


def number(
    *names: str, help: str, kind: type[float] = int, low: float | None = None, high: float | None = None, **other: Any
) -> Any:
    """Returns an option of the type `kind`, whose errors and help state the limits in words."""
    noun = "a whole number" if kind is int else "a number"
    limits = "" if low is None else f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            raise typer.BadParameter(f"must be {noun}{f' {limits}' if limits else ''}, got {show(text)}")
        return value

    text = f"{help} [{limits.removeprefix('of ')}]" if limits else help
    return typer.Option(*names, metavar="N" if kind is int else "X", parser=parse, help=text, **other)


def _not_empty(path: str | None) -> str | None:
    if path == "":
        raise typer.BadParameter("the path is empty")
    return path


MODEL_HELP = "Folder, GGUF file, owner/name on the hub, or a part of a downloaded model's name."

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", envvar="PUNA_MODEL", autocompletion=complete_model,
        help=f"{MODEL_HELP} [default: SmolLM2-135M-Instruct]",
    ),
]  # fmt: skip
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_model, help=MODEL_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Backend = Annotated[
    Literal["auto", "native", "torch"],
    typer.Option(help="What runs the model: native (C++ on the CPU), torch (PyTorch), or auto: native if it can."),
]
Threads = Annotated[
    int | None,
    number(low=1, high=256, envvar="PUNA_THREADS", help="Number of CPU threads. [default: one per physical core]"),
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="PyTorch device, such as cuda.")]
Dtype = Annotated[
    str | None, typer.Option(metavar="TYPE", help="Type to compute in: float32, or with PyTorch also bfloat16.")
]
Quantize = Annotated[
    Literal["q8_0", "q4_0", "q4_K"] | None,
    typer.Option(case_sensitive=False, metavar="<q8_0|q4_0|q4_K>", help="Quantise float weights while loading."),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        callback=_not_empty,
        help="Folder of a PEFT adapter, or GGUF adapter, that changes the model; only one.",
    ),
]
PrefixCacheDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder that keeps the read prompts (at most 8 GiB), so that later commands continue from them.",
    ),
]  # fmt: skip
File = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", metavar="FILE", help="UTF-8 file to append to the prompt; repeatable."),
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")]
MaxTokens = Annotated[
    int | None,
    number(
        "--max-tokens",
        "-n",
        low=0,
        help="Maximum number of tokens to generate. [default: the model's, else 256]",
    ),
]
AnswerTokens = Annotated[
    int | None,
    number(
        "--max-tokens",
        "-n",
        low=1,
        help="Maximum tokens of an answer. [default: the model's, else the rest of the context]",
    ),
]
Context = Annotated[
    int | None,
    number(
        "--context",
        "-c",
        low=2,
        help="Maximum tokens of prompt and answer together. [default: the model's]",
    ),
]
MaxBatch = Annotated[
    int,
    number(low=1, high=1024, help="Maximum number of sequences at once; one command runs one at a time."),
]
Temperature = Annotated[
    float | None,
    number("--temperature", "-t", kind=float, help="Sampling temperature; 0 always chooses the most likely token."),
]
TopK = Annotated[int | None, number(help="Sample from the k most likely tokens only; 0 means all.")]
TopP = Annotated[
    float | None, number(kind=float, help="Sample from the most likely tokens whose probabilities add up to p.")
]
MinP = Annotated[
    float | None,
    number(kind=float, help="Exclude tokens with less than this fraction of the highest probability."),
]
RepetitionPenalty = Annotated[
    float | None, number(kind=float, help="Values above 1 make tokens that occurred before less likely.")
]
TypicalP = Annotated[
    float | None,
    number(kind=float, help="Sample from the tokens with typical probabilities, which add up to p; 1 means all."),
]
PresencePenalty = Annotated[
    float | None, number(kind=float, help="Values above 0 make tokens that are in the answer less likely.")
]
FrequencyPenalty = Annotated[
    float | None, number(kind=float, help="The same, for each time that a token is in the answer.")
]
MinTokens = Annotated[int | None, number(help="Minimum number of tokens of the answer.")]
IgnoreEos = Annotated[
    bool | None, typer.Option("--ignore-eos", help="The model's end tokens do not end the answer.", show_default=False)
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        help="Guess tokens from earlier text: same answer, faster if text repeats. Default: on, off with PyTorch.",
        show_default=False,
    ),
]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE|JSON", help="The answer is JSON that is valid under this schema."),
]
Regex = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The answer is a text that this regular expression matches.")
]
Grammar = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The answer follows this grammar, in Lark's syntax.")
]
Choice = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="The answer is one of these texts; repeatable.")]
StateFolder = Annotated[Path | None, typer.Option(hidden=True, envvar="XDG_STATE_HOME")]
Seed = Annotated[int | None, number(help="Random seed, for reproducible sampling.")]


def answer_options(**values: Any) -> Options:
    """Returns the options of an answer without those that are None, whose defaults come from the model.

    Raises:
        typer.BadParameter: a value is out of range.
    """
    from puna.engine import Sampling
    from puna.grammars.rules import read_rule

    if "" in (values.get("stop") or []):
        raise typer.BadParameter("the text is empty; it would end every answer", param_hint="--stop")
    names = Sampling.__dataclass_fields__
    options = {name: value for name, value in values.items() if value is not None}
    if "grammar" in options:
        options["grammar"] = read_file(options["grammar"])
    if not options.get("json_schema", "{").lstrip().startswith("{"):
        options["json_schema"] = read_file(Path(options["json_schema"]))
    with usage_errors():
        read_rule(options)
        Sampling(**{name: value for name, value in options.items() if name in names})
    return cast("Options", options)
