"""`puna train resume`: continues an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command
from puna.cli.train.command import FIELDS
from puna.cli.train.command import resume as resume_run

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the result of a run.")]


@command({"puna train resume runs/spam": "continue after the last saved state"}, FIELDS)
def resume(folder: Folder, json: options.Json = False) -> None:
    """Continue an interrupted run after its last saved state.

    The settings and paths are those of the run, so start the command in the same folder. The result is the same, bit
    for bit, as without the interruption.
    """
    resume_run(folder, json=json)
