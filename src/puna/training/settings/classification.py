"""Options of classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """Labels and their weights."""

    problem: Literal["auto", "single", "multi", "regression"] = option(
        "auto", "one label per text, several labels, or a number"
    )
    labels: tuple[str, ...] | None = option(None, "names of the labels in their order; by default sorted")
    class_weights: tuple[float, ...] | Literal["balanced"] | None = option(
        None, "weights of the classes in the loss; balanced: inverse to their frequency", above=0
    )
