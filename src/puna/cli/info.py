"""`puna info`: versions, processor and backends of this machine."""

from __future__ import annotations

import typer

from puna import __version__
from puna.cli import options
from puna.cli.terminal import command, print_json


@command(
    {"puna info": "what puna uses on this machine"},
    {
        "version": "puna's version",
        "python, platform": "versions of Python and of the operating system",
        "cpu_features": "instruction sets of the processor that puna uses",
        "physical_cores, logical_cores": "numbers of cores",
        "threads": "default number of threads",
        "backends": "whether torch and native can run here",
    },
)
def info(json: options.Json = False) -> None:
    """Show the version, and this machine's CPU features, threads and backends."""
    import importlib.util
    import platform
    from importlib import metadata

    from puna.native import machine

    cpu = machine()
    backends = {
        "torch": f"PyTorch {metadata.version('torch')}" if importlib.util.find_spec("torch") else None,
        "native": f"uses kernels for {cpu.kernels[0]}; also available: {', '.join(cpu.kernels[1:]) or 'none'}",
    }
    if json:
        print_json(
            {
                "version": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cpu_features": list(cpu.features),
                "physical_cores": cpu.physical_cores,
                "logical_cores": cpu.logical_cores,
                "threads": cpu.physical_cores,
                "backends": {name: description is not None for name, description in backends.items()},
            }
        )
        return
    rows = [
        ("puna", __version__),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("CPU features", " ".join(cpu.features) or "none that puna uses"),
        ("cores", f"{cpu.physical_cores} physical, {cpu.logical_cores} logical"),
        ("threads", f"{cpu.physical_cores} by default"),
        ("torch", backends["torch"] or "not installed; run pip install 'puna[torch]'"),
        ("native", str(backends["native"])),
    ]
    for name, value in rows:
        typer.echo(f"{name:<13} {value}")
