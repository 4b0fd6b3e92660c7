"""The task `pretrain`: predicts every token of text files, with a new model or one that continues."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from puna.errors import ConfigError, DataError, show
from puna.files.text_files import find_text_files
from puna.model import LlamaPreTrainedModel
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Batch
from puna.training.forward.base import Forward
from puna.training.pretraining.new_model import new_config, new_model
from puna.training.pretraining.token_files import prepare_tokens
from puna.training.pretraining.windows import TokenWindows
from puna.training.settings import TrainingSettings
from puna.training.tasks.base import Examples, Task


class Pretraining(Task):
    """Language modelling of complete texts. Without a model, the run starts from random weights."""

    unit: ClassVar[str] = "bytes"

    def read(self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> Examples:
        """Returns the windows of the text files at the paths `data`."""
        return self._windows(data, settings, tokenizer, "tokens")

    def read_held_out(self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> Examples:
        """Returns the windows of held-out text files."""
        return self._windows(data, settings, tokenizer, "held-out-tokens")

    def _windows(
        self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> TokenWindows:
        paths = [data] if isinstance(data, str | Path) else data
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str | Path) for path in paths):
            raise DataError(f"the data of pretraining are {show(data)}; give paths of text files or folders")
        base = settings.token_folder if settings.token_folder is not None else settings.output
        assert base is not None, "the run has chosen its folder"
        folder = Path(base) / name if settings.token_folder is None or name != "tokens" else Path(base)
        tokens = prepare_tokens(find_text_files(paths, DataError), tokenizer, folder, self.progress)
        return TokenWindows(tokens, settings.max_length, _leading_bos(tokenizer))

    def hold_out(
        self, examples: Examples, settings: TrainingSettings
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """Returns the indices of the windows that train, and of the last windows of the texts, which are held out."""
        count = len(examples)
        if settings.eval_share == 0:
            return None, np.empty(0, np.int64)
        size = max(1, round(settings.eval_share * count))
        return np.arange(count - size), np.arange(count - size, count)

    def load_tokenizer(self, settings: TrainingSettings) -> PreTrainedTokenizerBase:
        """Returns the tokenizer, which a new model needs as a setting."""
        if not settings.tokenizer and not settings.model:
            raise ConfigError(
                "a new model needs a tokenizer; set tokenizer to the folder of one, such as that of `puna tokenizer "
                "train TEXT -o DIR`"
            )
        return super().load_tokenizer(settings)

    def load_model(
        self, settings: TrainingSettings, examples: Examples, keep_quantized: bool = False
    ) -> LlamaPreTrainedModel:
        """Returns the model of the settings, or a new one."""
        names = [name for name in ("from_config", "depth", "width", "heads") if getattr(settings, name) is not None]
        if settings.model and names:
            raise ConfigError(
                f"model and {names[0]} are both set; leave out model for a new model, or {names[0]} to continue with "
                "the weights of the model"
            )
        if settings.model:
            return super().load_model(settings, examples, keep_quantized)
        return new_model(new_config(settings, self.load_tokenizer(settings)), settings.initial_std, settings.seed)

    def evaluate(self, forward: Forward, batches: Iterable[Batch]) -> dict[str, Any]:
        """Returns the mean loss of the held-out tokens in nats, and its exponential."""
        metrics = super().evaluate(forward, batches)
        return {**metrics, "perplexity": math.exp(min(metrics["loss"], 700.0))}


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the id of BOS if the tokenizer adds it to every text, else None."""
    first = list(tokenizer.encode(""))[:1]
    return first[0] if first and first[0] == tokenizer.bos_token_id else None
