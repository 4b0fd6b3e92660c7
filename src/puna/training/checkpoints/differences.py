"""Compares a run with the state that it would resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import TrainingError, show

MAY_CHANGE = frozenset({
    "output", "overwrite", "resume", "threads", "sample_prompts", "sample_tokens", "save_steps", "keep_last",
    "keep_steps", "spike_threshold",
})  # fmt: skip
"""Options that do not change the result of a run, and the detection of spikes, which may have ended it."""


def check_same_run(record: Mapping[str, Any], settings: Mapping[str, Any], data: str) -> None:
    """Compares the settings and the digest of the data with those of a state.

    Args:
        record: the state's record, with "settings" and "data".
        settings: the settings of this run, as JSON values.
        data: the digest of the training and held-out data of this run.

    Raises:
        TrainingError: they differ; the message names each difference.
    """
    before = record["settings"]
    names = [
        name
        for name in settings
        if name not in MAY_CHANGE and _relevant(name, settings[name]) != _relevant(name, before.get(name))
    ]
    differences = [f"{name} was {show(before.get(name))} and is {show(settings[name])}" for name in names]
    if data != record["data"]:
        differences.append(
            f"the data were other examples (their digest was {record['data'][:12]} and is {data[:12]}): a file, the "
            "tokenizer or an option of reading changed"
        )
    if differences:
        raise TrainingError(
            f"the run cannot be resumed, because it would not be the same: {'; '.join(differences)}. Restore these, or "
            "begin a new run with another output folder or overwrite=True"
        )


def _relevant(name: str, value: Any) -> Any:
    """Returns the part of an option that can change the result: of `activation_cache`, whether there is one."""
    return value is not None if name == "activation_cache" else value
