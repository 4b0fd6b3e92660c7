"""`METHODS`: every training method by name."""

from __future__ import annotations

from puna.training.methods.base import Method
from puna.training.methods.bottleneck import BottleneckAdapters
from puna.training.methods.full import Full
from puna.training.methods.ia3 import Ia3
from puna.training.methods.lora import Lora, Qlora
from puna.training.methods.prefix import Prefix
from puna.training.methods.prompt import Prompt, PTuning

_ALL: tuple[Method, ...] = (Full(), Lora(), Qlora(), Ia3(), Prompt(), PTuning(), Prefix(), BottleneckAdapters())

METHODS = {method.name: method for method in _ALL}
