"""`puna train classify`: trains a classifier of texts."""

from __future__ import annotations

from typing import Any

from puna.cli import options
from puna.cli.terminal import command
from puna.cli.train.command import FIELDS, Config, PrintConfig, train
from puna.cli.train.options import with_settings


@command(
    {
        "puna train classify --data spam.csv --eval-share 0.2": "columns text and label; a fifth is held out",
        "puna train classify --data mails.csv --columns text=body --columns label=kind": "other names of columns",
        "puna train classify --data ratings.csv --problem regression": "predict numbers",
        "puna train classify --data rare.csv --class-weights balanced": "give rare classes more weight",
    },
    FIELDS,
)
@with_settings("classify")
def classify(
    config: Config = None, print_config: PrintConfig = False, json: options.Json = False, **values: Any
) -> None:
    """Teach a model to classify texts: one label, several labels, or a number.

    Options override the file. Ctrl-C saves the state; puna train resume FOLDER continues the run.
    """
    train("classify", config, values, print_config=print_config, json=json)
