"""`WeightFiles`: the names of the weight files of a Hugging Face folder, with numbers and variants."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from puna.errors import CheckpointError, show
from puna.files.part_names import parse_part_name


@dataclass(frozen=True)
class WeightFiles:
    """The names of a model's weight files: PREFIX.VARIANT.ENDING, or PREFIX.VARIANT-00001-of-00002.ENDING.

    The index of several files is PREFIX.ENDING.index.VARIANT.json, as in transformers.
    """

    prefix: str
    ending: str
    variant: str | None = None

    def with_variant(self, variant: str | None) -> WeightFiles:
        """Returns the names of a variant.

        Raises:
            CheckpointError: the variant cannot be part of a file name.
        """
        if variant is not None and not re.fullmatch(r"[\w.-]+", str(variant)):
            raise CheckpointError(f"variant is {show(variant)}; it must consist of letters, digits, '.', '-' and '_'")
        return replace(self, variant=variant)

    @property
    def stem(self) -> str:
        """The names without numbers and ending."""
        return self.prefix if self.variant is None else f"{self.prefix}.{self.variant}"

    @property
    def single(self) -> str:
        """The name of the only file."""
        return f"{self.stem}{self.ending}"

    @property
    def index(self) -> str:
        """The name of the index of several files."""
        variant = "" if self.variant is None else f"{self.variant}."
        return f"{self.prefix}{self.ending}.index.{variant}json"

    def include(self, name: str) -> bool:
        """Whether `name` is one of these names."""
        part = parse_part_name(name)
        is_shard = part is not None and (part.prefix, part.ending) == (self.stem, self.ending)
        return is_shard or name in (self.single, self.index)


SAFETENSORS = WeightFiles("model", ".safetensors")
PYTORCH = WeightFiles("pytorch_model", ".bin")
