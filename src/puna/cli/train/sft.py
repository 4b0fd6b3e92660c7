"""`puna train sft`: supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from puna.cli import options
from puna.cli.terminal import command
from puna.cli.train.command import FIELDS, Config, PrintConfig, train
from puna.cli.train.options import with_settings


@command(
    {
        "puna train sft --data chats.jsonl": "train a LoRA adapter of the default model",
        "puna train sft -m Llama-3.2-1B --data poems/ --rank 8 --epochs 2": "another model, a folder of texts",
        "puna train sft --data chats.jsonl --eval-share 0.1 --eval-steps 50 --keep-best": "keep the best state",
        "puna train sft run.toml --seed 1": "repeat a run from its training.toml, with another seed",
        "puna train sft --data chats.jsonl --print-config > run.toml": "write a file of settings",
    },
    FIELDS,
)
@with_settings("sft")
def sft(config: Config = None, print_config: PrintConfig = False, json: options.Json = False, **values: Any) -> None:
    """Teach a model from chats, prompts with answers, or texts (supervised fine-tuning).

    Options override the file. Ctrl-C saves the state; puna train resume FOLDER continues the run.
    """
    train("sft", config, values, print_config=print_config, json=json)
