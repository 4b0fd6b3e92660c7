"""Full fine-tuning: the parameters of the model itself train."""

from __future__ import annotations

from puna.adapters import Adapter
from puna.checkpoint.names import EMBEDDING
from puna.errors import ConfigError
from puna.model.quantized import PackedMatrix
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.methods.attach import train_weights
from puna.training.methods.base import Method, Trainable
from puna.training.methods.targets import layer_numbers
from puna.training.settings import TrainingSettings


class Full(Method):
    """Trains all parameters; with `layers`, those of these layers, the final norm and a head that is not tied."""

    name = "full"
    kind = None
    options = frozenset({"layers"})

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Marks the parameters of the model; raises ConfigError if its matrices are packed."""
        model = trainable.model
        if any(isinstance(module, PackedMatrix) for module in model.modules()):
            raise ConfigError(
                "the model keeps its matrices packed, so that they cannot train; omit quantized, or choose the method "
                "qlora"
            )
        names = [name for name, _ in model.named_parameters()]
        if settings.layers is not None:
            starts = tuple(f"model.layers.{number}." for number in layer_numbers(settings.layers, model.config))
            names = [name for name in names if not name.startswith("model.layers.") or name.startswith(starts)]
            names = [name for name in names if name != EMBEDDING]
        train_weights(trainable, names)

    def learning_rate(self, hidden: int) -> float:
        """Returns a tenth of LoRA's learning rate."""
        return super().learning_rate(hidden) / 10
