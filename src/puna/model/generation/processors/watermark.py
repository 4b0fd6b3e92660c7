"""Watermarks of generated text (arXiv:2306.04634): a secret part of the vocabulary, the green tokens, is preferred.

The green tokens of a step depend on a key and on the previous tokens. `WatermarkDetector` counts them in a
text. The choice of green tokens is that of transformers, which uses the code of the paper.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.config.generation.watermarks import WatermarkingConfig, read_watermarking_config
from puna.errors import RequestError, show
from puna.model.generation.processors.base import LogitsProcessor, as_device, check_integer

_TABLE_SIZE = 1_000_003
_REJECTION_STEPS = 40
"""Number of most likely tokens that "selfhash" examines."""


class WatermarkLogitsProcessor(LogitsProcessor):
    """Adds `bias` to the scores of the green tokens.

    Args:
        vocab_size: the model's vocabulary size.
        device: the device of the scores; the green tokens differ between kinds of devices.
        greenlist_ratio: fraction of the vocabulary that is green, between 0 and 1.
        bias: added to the scores of green tokens.
        hashing_key: the secret key.
        seeding_scheme: "lefthash": the green tokens depend on the previous token; "selfhash": also on the token itself.
        context_width: number of previous tokens that are hashed.
    """

    def __init__(
        self,
        vocab_size: int,
        device: Any,
        greenlist_ratio: float = 0.25,
        bias: float = 2.0,
        hashing_key: int = 15485863,
        seeding_scheme: str = "lefthash",
        context_width: int = 1,
    ) -> None:
        config = WatermarkingConfig(greenlist_ratio, bias, hashing_key, seeding_scheme, context_width)
        config.validate()
        if not 0 < greenlist_ratio < 1:
            raise RequestError(f"greenlist_ratio is {greenlist_ratio!r}; it must be greater than 0 and less than 1")
        check_integer("vocab_size", vocab_size, 1)
        self.vocab_size = vocab_size
        self.greenlist_size = int(vocab_size * greenlist_ratio)
        self.bias = bias
        self.seeding_scheme = seeding_scheme
        self.hash_key = hashing_key
        self.context_width = context_width
        device = as_device(device)
        self.rng = torch.Generator(device).manual_seed(hashing_key)
        self.fixed_table = torch.randperm(_TABLE_SIZE, generator=self.rng, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores; without `context_width` tokens, warns and changes nothing."""
        if input_ids.shape[-1] < self.context_width:
            warnings.warn(
                f"the watermark needs {self.context_width} tokens (context_width), but a row has {input_ids.shape[-1]}"
                "; this token is not marked",
                stacklevel=2,
            )
            return scores
        result = scores.clone()
        for row, (ids, row_scores) in enumerate(zip(input_ids, scores, strict=True)):
            own = self.seeding_scheme == "selfhash"
            green = self._own_green_tokens(ids, row_scores) if own else self.green_tokens(ids)
            result[row, green] += self.bias
        return result

    def green_tokens(self, ids: Tensor) -> Tensor:
        """Returns the green tokens after `ids`, (tokens,); for "selfhash", `ids` ends with the token itself."""
        self.rng.manual_seed(self._seed(ids[-self.context_width :]))
        return torch.randperm(self.vocab_size, device=ids.device, generator=self.rng)[: self.greenlist_size]

    def _seed(self, context: Tensor) -> int:
        if self.seeding_scheme == "lefthash":
            seed = self.hash_key * int(context[-1])
        else:
            hashes = self.fixed_table[context % _TABLE_SIZE] + 1
            seed = int((self.hash_key * hashes * hashes[-1]).min())
        return seed % (2**64 - 1)

    def _own_green_tokens(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns those of the most likely tokens that are green if they follow `ids`, (tokens,)."""
        likely = scores.argsort(dim=-1, descending=True)[:_REJECTION_STEPS]
        green = [bool((self.green_tokens(torch.cat((ids, token[None]))) == token).any()) for token in likely]
        return likely[torch.tensor(green, device=likely.device)]


@dataclass
class WatermarkDetectorOutput:
    """Results of `WatermarkDetector`, one value per row.

    Attributes:
        num_tokens_scored, num_green_tokens: counts.
        green_fraction: green tokens per scored token.
        z_score: excess of green tokens in standard deviations.
        p_value: probability of such an excess without a watermark.
        prediction: whether the text has the watermark.
        confidence: 1 - p_value.
    """

    num_tokens_scored: np.ndarray | None = None
    num_green_tokens: np.ndarray | None = None
    green_fraction: np.ndarray | None = None
    z_score: np.ndarray | None = None
    p_value: np.ndarray | None = None
    prediction: np.ndarray | None = None
    confidence: np.ndarray | None = None


class WatermarkDetector:
    """Decides whether texts have the watermark of a `WatermarkingConfig`.

    Args:
        model_config: the configuration of the model that generated the texts.
        device: the device on which they were generated.
        watermarking_config: the configuration that was used, or its dictionary.
        ignore_repeated_ngrams: count equal n-grams once.
        max_cache_size: ignored; each n-gram is computed once per call.
    """

    def __init__(
        self,
        model_config: Any,
        device: Any,
        watermarking_config: Any,
        ignore_repeated_ngrams: bool = False,
        max_cache_size: int = 128,
    ) -> None:
        watermarking_config = read_watermarking_config(watermarking_config)
        if not hasattr(watermarking_config, "to_dict") or not hasattr(watermarking_config, "greenlist_ratio"):
            raise RequestError(f"watermarking_config is {show(watermarking_config)}; it must be a WatermarkingConfig")
        arguments: Mapping[str, Any] = (
            watermarking_config if isinstance(watermarking_config, dict) else watermarking_config.to_dict()
        )
        self.bos_token_id = model_config.bos_token_id
        self.greenlist_ratio = arguments["greenlist_ratio"]
        self.ignore_repeated_ngrams = ignore_repeated_ngrams
        self.processor = WatermarkLogitsProcessor(model_config.vocab_size, device, **arguments)

    def __call__(
        self, input_ids: Tensor, z_threshold: float = 3.0, return_dict: bool = False
    ) -> WatermarkDetectorOutput | np.ndarray:
        """Examines texts, (rows, tokens), without their prompts.

        Args:
            z_threshold: the excess of green tokens, in standard deviations, from which a text has the watermark.
            return_dict: return a `WatermarkDetectorOutput` in place of the predictions, bool, (rows,).

        Raises:
            RequestError: only some rows start with bos, or the rows are too short.
        """
        starts = input_ids[:, 0] == self.bos_token_id
        if starts.any() and not starts.all():
            raise RequestError("some rows start with bos_token_id and others do not; encode all texts the same way")
        input_ids = input_ids[:, 1:] if starts.all() else input_ids
        if input_ids.shape[1] <= self.processor.context_width:
            raise RequestError(
                f"the rows have {input_ids.shape[1]} tokens; they need more than context_width, "
                f"{self.processor.context_width}"
            )
        counts = np.array([self._count(ids) for ids in input_ids], dtype=float)  # (rows, 2)
        total, green = counts[:, 0], counts[:, 1]
        ratio = self.greenlist_ratio
        z_score = (green - ratio * total) / np.sqrt(total * ratio * (1 - ratio))
        prediction: np.ndarray = z_score > z_threshold
        if not return_dict:
            return prediction
        p_value = 0.5 * torch.special.erfc(torch.as_tensor(z_score / np.sqrt(2))).numpy()
        return WatermarkDetectorOutput(total, green, green / total, z_score, p_value, prediction, 1 - p_value)

    def _count(self, ids: Tensor) -> tuple[int, int]:
        """Returns the number of tokens of a row, (tokens,), that are scored, and the number of green ones."""
        own = self.processor.seeding_scheme == "selfhash"
        size = self.processor.context_width + (0 if own else 1)
        ngrams = Counter(map(tuple, ids.unfold(0, size, 1).tolist()))
        total = green = 0
        for ngram, times in ngrams.items():
            context = ids.new_tensor(ngram if own else ngram[:-1])
            times = 1 if self.ignore_repeated_ngrams else times
            total += times
            green += times * int((self.processor.green_tokens(context) == ngram[-1]).any())
        return total, green
