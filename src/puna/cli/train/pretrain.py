"""`puna train pretrain`: trains a small model from random weights."""

from __future__ import annotations

from typing import Any

from puna.cli import options
from puna.cli.terminal import command
from puna.cli.train.command import FIELDS, Config, PrintConfig, train
from puna.cli.train.options import with_settings


@command(
    {
        "puna train pretrain --from-config config.json --tokenizer tokenizer --data book.txt": "a new model",
        "puna train pretrain -m model --data book.txt --steps 2000 --batch-size 12": "continue with an existing model",
    },
    FIELDS,
)
@with_settings("pretrain")
def pretrain(
    config: Config = None, print_config: PrintConfig = False, json: options.Json = False, **values: Any
) -> None:
    """Train a small model on plain text, from random weights or from a model.

    Options override the file. Ctrl-C saves the state; puna train resume FOLDER continues the run.
    """
    train("pretrain", config, values, print_config=print_config, json=json)
