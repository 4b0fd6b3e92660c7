"""`puna serve`: a server with OpenAI's and Anthropic's interfaces and a chat page."""

from __future__ import annotations

import json as json_module
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli import options
from puna.cli.models import complete_model, locate, model_name
from puna.cli.server.guard import read_guard, with_guard
from puna.cli.server.limits import read_limits, with_limits
from puna.cli.terminal import command, note, print_json
from puna.errors import MissingExtraError

if TYPE_CHECKING:
    from puna.server.service import Service


@command(
    {
        "puna serve": "serve the default model at http://127.0.0.1:8000",
        "puna serve model.gguf --port 9000": "another model and port",
        "puna serve smollm2 --adapter poems=./poems-lora": 'with an adapter, which requests choose by "model": "poems"',
        "torchrun --no-python --nproc-per-node 2 puna serve llama --tp 2": "two processes that share the matrices",
        "puna serve --port 0 --json": "any free port; print the address as JSON when requests are accepted",
    },
    {
        "url": "address of the server",
        "model": "name of the model in requests",
        "adapters": "list of the names of its adapters",
        "context": "maximum number of tokens of prompt and answer together",
        "seconds": "time until requests were accepted",
    },
)
@with_guard
@with_limits
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            envvar="PUNA_MODEL",
            autocompletion=complete_model,
            help=f"{options.MODEL_HELP} [default: SmolLM2-135M-Instruct]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, options.number(low=0, high=65535, help="Port to listen at; 0 is any free port.")] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Name of the model in requests. [default: its file or folder]")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=PATH", help="Adapter that requests choose by name; repeatable."),
    ] = None,
    unknown_fields: Annotated[
        Literal["refuse", "warn"],
        typer.Option(help="Refuse requests with unknown fields, or list the fields in the header X-Puna-Ignored."),
    ] = "refuse",
    trust_request_chat_template: Annotated[
        bool, typer.Option("--trust-request-chat-template", help="Accept the field chat_template of requests.")
    ] = False,
    drain_seconds: Annotated[
        float, options.number(kind=float, low=0, help="Time for running requests to finish after SIGTERM or Ctrl-C.")
    ] = 30,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder that keeps the prefixes of prompts over restarts.")
    ] = None,
    cache_disk: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Maximum size of --cache-dir, such as 4G. [default: 8G]")
    ] = None,
    warm: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text, or JSON of messages, that is read into the cache first.")
    ] = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    max_batch: Annotated[
        int, options.number(low=1, high=1024, help="Maximum number of answers that are generated at once.")
    ] = 64,
    device: options.Device = None,
    lazy_compile: Annotated[
        bool,
        typer.Option("--lazy-compile", help="On a GPU, compile while the first requests wait, not before."),
    ] = False,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    tp: Annotated[
        int,
        options.number(
            low=1,
            high=64,
            help="Number of processes that share the matrices, with PyTorch on the CPU; start them with torchrun.",
        ),
    ] = 1,
    json: options.Json = False,
    **values: Any,
) -> None:
    """Serve a model: OpenAI's and Anthropic's interfaces, and a chat page.

    Ctrl-C or SIGTERM lets running requests finish; a second Ctrl-C ends the server at once.
    """
    from puna.server.settings import ServerSettings

    start = time.perf_counter()
    path = locate(model)
    engine: dict[str, Any] = {
        "backend": backend, "threads": threads, "device": device, "dtype": dtype, "quantize": quantize,
        "max_batch": max_batch, "prefix_cache_dir": cache_dir, "tensor_parallel": tp,
    }  # fmt: skip
    if cache_disk is not None:
        engine["prefix_cache_bytes"] = _bytes(cache_disk)
    served_name, by_name = name or model_name(path), _adapters(adapters or [])
    if served_name in by_name:
        message = f"the name {served_name!r} is that of the model; choose another, or name the model with --name"
        raise typer.BadParameter(message, param_hint="--adapter")
    settings = ServerSettings(
        host=host, port=port, unknown_fields=unknown_fields,
        trust_request_chat_template=trust_request_chat_template, limits=read_limits(values),
        drain_seconds=drain_seconds, name=served_name, adapters=by_name, warm=warm,
        lazy_compile=lazy_compile, options=engine,
        **read_guard(values),
    )  # fmt: skip
    if tp > 1 and _follow(path, tp, threads, dtype, max_batch):
        return
    service = _service(path, settings)

    def on_ready(url: str) -> None:
        seconds, llm = round(time.perf_counter() - start, 2), service.llm
        if json:
            names = list(settings.adapters)
            print_json({"url": url, "model": service.name, "adapters": names, "context": llm.longest_text(),
                        "seconds": seconds})  # fmt: skip
            sys.stdout.flush()
            return
        note(f"puna: {service.name} is ready at {url} ({seconds} s); Ctrl-C stops the server")
        body = {"model": service.name, "messages": [{"role": "user", "content": "Hi!"}], "temperature": 0}
        key = "-H 'Authorization: Bearer KEY' " if settings.keys else ""
        data = shlex.quote(json_module.dumps(body))
        note(f"curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' -d {data}")

    note(f"puna: loading {service.name} ...")
    _run(service, on_ready)


def _follow(path: Path, tp: int, threads: int | None, dtype: str | None, max_batch: int) -> bool:
    """Works for the first of `tp` processes, which also handles Ctrl-C; returns False if this is the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from puna.backends import follow

        return follow(path, tp, threads, dtype, max_batch)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _service(path: Path, settings: Any) -> Service:
    """Returns the service, whose model is being loaded in a thread."""
    from puna.server.service import Service

    service = Service(path, settings)
    service.load_in_thread(_report_compilation)
    return service


def _report_compilation(sizes: Sequence[int]) -> None:
    note(
        f"puna: compiling steps of up to {', '.join(map(str, sizes))} sequences: this can take minutes; "
        "--lazy-compile does it during the first requests"
    )


def _run(service: Service, on_ready: Any) -> None:
    """Imports the web framework while the model is loaded, and serves."""
    try:
        from puna.server.app import create_app
        from puna.server.run import run
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
            raise
        raise MissingExtraError(
            f"puna serve needs {exc.name}, which is not installed; install it with: pip install 'puna[serve]'"
        ) from exc
    run(create_app(service, service.settings), service, on_ready)


def _adapters(values: list[str]) -> dict[str, str]:
    """Returns paths of adapters by name."""
    adapters: dict[str, str] = {}
    for value in values:
        name, _, path = value.partition("=")
        if not name or not path:
            raise typer.BadParameter(f"must be NAME=PATH, got {value!r}", param_hint="--adapter")
        if name in adapters:
            raise typer.BadParameter(f"the name {name!r} is given twice", param_hint="--adapter")
        adapters[name] = path
    return adapters


def _bytes(text: str) -> int:
    """Returns a number of bytes, such as 4G."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = units.get(number[-1:], 1)
    digits = number[:-1] if number[-1:] in units else number
    if not digits.isascii() or not digits.isdigit():
        raise typer.BadParameter(f"must be a whole number with K, M, G or T, got {text!r}", param_hint="--cache-disk")
    return int(digits) * unit
