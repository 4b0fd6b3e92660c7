"""`puna info`: what puna finds on this machine."""

from __future__ import annotations

import typer

from puna import __version__
from puna.cli import options
from puna.cli.terminal import command, print_json


@command
def info(json: options.Json = False) -> None:
    """Show the version, the processor's features, threads and backends."""
    import importlib.util
    import platform
    from importlib import metadata

    from puna.native import machine

    here = machine()
    backends = {
        "torch": f"PyTorch {metadata.version('torch')}" if importlib.util.find_spec("torch") else None,
        "native": f"kernels for {here.kernels[0]}; {', '.join(here.kernels[1:]) or 'no others'} beside it",
    }
    if json:
        print_json(
            {
                "version": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cpu_features": list(here.features),
                "physical_cores": here.physical_cores,
                "logical_cores": here.logical_cores,
                "threads": here.physical_cores,
                "backends": {name: found is not None for name, found in backends.items()},
            }
        )
        return
    rows = [
        ("puna", __version__),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("CPU features", " ".join(here.features) or "none that matter here"),
        ("cores", f"{here.physical_cores} physical, {here.logical_cores} logical"),
        ("threads", f"{here.physical_cores} unless told otherwise"),
        ("torch", backends["torch"] or "missing; pip install 'puna[torch]'"),
        ("native", str(backends["native"])),
    ]
    for name, value in rows:
        typer.echo(f"{name:<13} {value}")
