"""The options of `puna serve` for keys, hosts, queues, timeouts and logs: a table, from which the command is built."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from puna.cli.options import number
from puna.cli.parameters import with_parameters


def _not_on_the_command_line(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    if value is not None and "ENVIRONMENT" not in str(ctx.get_parameter_source(param.name or "")):
        raise typer.BadParameter(
            "other users of this machine can read command lines; write keys into a file for --api-key-file, or set "
            "PUNA_API_KEYS"
        )
    return value


_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "api_key_file": (
        Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                help="File of the keys that requests need: one a line, or a name and a key. PUNA_API_KEYS adds keys, "
                "separated by commas.",
            ),
        ],
        None,
    ),
    "api_keys": (
        Annotated[
            str | None,
            typer.Option(hidden=True, envvar="PUNA_API_KEYS", callback=_not_on_the_command_line),
        ],
        None,
    ),
    "insecure": (
        Annotated[bool, typer.Option("--insecure", help="Let other machines use the server without a key.")],
        False,
    ),
    "allowed_hosts": (
        Annotated[
            list[str] | None,
            typer.Option("--allowed-host", metavar="NAME", help="Further name of the server in URLs; repeatable."),
        ],
        None,
    ),
    "allowed_origins": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--allow-origin",
                metavar="ORIGIN",
                help="Site whose pages may use the server, such as https://chat.example; * is every site; repeatable.",
            ),
        ],
        None,
    ),
    "queue": (
        Annotated[int, number("--max-queue", low=0, help="Maximum number of waiting requests; more are refused.")],
        256,
    ),
    "queue_seconds": (
        Annotated[float, number(kind=float, low=0, help="Maximum time that a request waits for others.")],
        120.0,
    ),
    "per_caller": (
        Annotated[
            int | None,
            number("--max-streams", low=1, help="Maximum number of requests of one key at once. [default: unlimited]"),
        ],
        None,
    ),
    "fair_by": (
        Annotated[
            Literal["key", "user", "none"],
            typer.Option(help="Divide the server equally between keys, users of requests, or not at all."),
        ],
        "key",
    ),
    "request_seconds": (
        Annotated[float, number(kind=float, low=0, help="Maximum time of an answer.")],
        1800.0,
    ),
    "body_seconds": (
        Annotated[float, number(kind=float, low=0, help="Maximum time until a request has arrived.")],
        60.0,
    ),
    "slow_reader_seconds": (
        Annotated[float, number(kind=float, low=0, help="Time after which a client that reads nothing is dropped.")],
        60.0,
    ),
    "access_log": (
        Annotated[
            Literal["lines", "json", "off"],
            typer.Option("--log", help="One line of log for each request on standard error, without any text of it."),
        ],
        "lines",
    ),
    "metrics_alias": (
        Annotated[
            Literal["vllm"] | None,
            typer.Option(help="Also give all metrics the names that dashboards for vLLM expect."),
        ],
        None,
    ),
    "replica": (
        Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Name of this server in the header X-Puna-Replica of its responses."),
        ],
        None,
    ),
    "cpus": (
        Annotated[
            str | None,
            typer.Option(
                metavar="LIST",
                help="Logical CPUs to use, such as 0-7,16-23: those of one socket are fastest. [default: all]",
            ),
        ],
        None,
    ),
}
"""Type and default of each option, by the name of the parameter."""

_QUEUE = ("queue", "queue_seconds", "per_caller", "fair_by")


def with_guard(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator: adds the options to a command, which receives their values as `**values`."""
    return with_parameters(function, _OPTIONS)


def read_guard(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `ServerSettings` for the values of the options, and binds the process to `--cpus`.

    Raises:
        ConfigError: the file of keys is invalid.
        typer.BadParameter: the list of CPUs is invalid.
    """
    from puna.server.guard.admission import AdmissionSettings
    from puna.server.guard.callers import read_keys

    chosen = {name: values[name] for name in _OPTIONS}
    _bind_to_cpus(chosen.pop("cpus"))
    keys = read_keys(chosen.pop("api_key_file"), chosen.pop("api_keys"))
    settings = AdmissionSettings(**{name: chosen.pop(name) for name in _QUEUE})
    for name in ("allowed_hosts", "allowed_origins"):
        chosen[name] = frozenset(chosen[name] or ())
    return {**chosen, "keys": tuple(keys), "admission": settings}


def _bind_to_cpus(text: str | None) -> None:
    """Lets this process use only some logical CPUs; the default number of threads follows."""
    if text is None:
        return
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?", part) is None:
            raise typer.BadParameter(f"must be numbers and ranges such as 0-7,16-23, got {text!r}", param_hint="--cpus")
        cpus |= set(range(int(first), int(last or first) + 1))
    if not hasattr(os, "sched_setaffinity"):
        raise typer.BadParameter("this system cannot bind a process to CPUs; leave the option out", param_hint="--cpus")
    available = os.sched_getaffinity(0)
    if not cpus or cpus - available:
        listed = ",".join(map(str, sorted(available)))
        raise typer.BadParameter(f"{text!r} is not a part of the available CPUs: {listed}", param_hint="--cpus")
    os.sched_setaffinity(0, cpus)


def first_key(path: Path | None, variable: str | None) -> str | None:
    """Returns the first configured key, which a client sends; None if there are none."""
    from puna.server.guard.callers import read_keys

    keys = read_keys(path, variable)
    return keys[0][1] if keys else None
