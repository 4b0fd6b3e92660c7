"""The common part of the decoding strategies: the inputs of a call, one forward pass, and a loop without beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import RequestError
from puna.model.cache import KVCache, LegacyCache
from puna.model.generation.outputs import GenerateDecoderOnlyOutput
from puna.model.generation.prompt import Prompt
from puna.model.outputs import CausalLMOutputWithPast

Processor = Callable[[Tensor, Tensor], Tensor]
"""(ids (rows, tokens), scores (rows, vocab)) -> scores."""

Criterion = Callable[[Tensor, Any], "bool | Tensor"]
"""(ids (rows, tokens), scores (rows, vocab)) -> whether to stop: a bool for all rows, or one per row, (rows,)."""


class LanguageModel(Protocol):
    """The part of `LlamaForCausalLM` that generation uses, because it cannot import the class."""

    config: LlamaConfig
    generation_config: GenerationConfig
    generation_path: str | None
    """Which path the last call took: "native", or "torch: " and the reason."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: LegacyCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> dict[str, Any]:
        """Returns the arguments of the next call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the logits."""


class Streamer(Protocol):
    """Receives the prompt and then each new token. transformers' streamers have this interface."""

    def put(self, value: Tensor) -> None:
        """Receives the prompt's ids, (rows, tokens), then one new id per row, (rows,); on the CPU."""

    def end(self) -> None:
        """Called when the text has ended."""


class Forward(Protocol):
    """The model as the strategies use it: a forward pass, and operations on the cache that it returns."""

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: Any,
        keep: int = 1,
        *,
        attentions: bool = False,
        hidden_states: bool = False,
    ) -> CausalLMOutputWithPast:
        """Computes the logits of the last `keep` tokens, (rows, keep, vocab).

        Args:
            ids: (rows, tokens), all tokens so far, with those in the cache.
            mask: (rows, cached + new tokens), 0 for padding.
            cache: `past_key_values` of an earlier output, or of the prompt; None for no cached tokens.
            keep: number of last tokens whose logits are computed.
            attentions, hidden_states: whether the output has them.
        """

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """Returns a cache whose row i is row `rows[i]` of `cache`; rows may repeat."""

    def crop(self, cache: Any, length: int) -> Any:
        """Returns a cache of the first `length` tokens."""


class TorchForward:
    """`Forward` with the PyTorch module.

    Args:
        model: the module.
        prompt: its embeddings are used while the cache is empty; its mask determines whether there is padding.
        use_cache: whether to keep keys and values; without them, each forward pass computes all tokens.
    """

    def __init__(self, model: LanguageModel, prompt: Prompt, use_cache: bool = True) -> None:
        self._model = model
        self._embeds = prompt.embeds
        self._padded = not bool(prompt.mask.all())
        self._use_cache = use_cache

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: Any,
        keep: int = 1,
        *,
        attentions: bool = False,
        hidden_states: bool = False,
    ) -> CausalLMOutputWithPast:
        """See `Forward`."""
        arguments = self._model.prepare_inputs_for_generation(ids, cache, mask, self._embeds, use_cache=self._use_cache)
        if not self._padded:
            arguments["attention_mask"] = None  # plain causal order has faster kernels
        wanted = {"output_attentions": attentions, "output_hidden_states": hidden_states}
        out: CausalLMOutputWithPast = self._model(**arguments, **wanted, return_dict=True, logits_to_keep=keep)
        return out

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """See `Forward`."""
        return cache if cache is None else KVCache(cache).reorder(rows)

    def crop(self, cache: Any, length: int) -> Any:
        """See `Forward`."""
        return cache if cache is None else KVCache(cache).crop(length)


@dataclass
class Collected:
    """The optional outputs of a call; the settings decide which lists are filled."""

    scores: list[Tensor] = field(default_factory=list)  # per new token (rows, vocab)
    logits: list[Tensor] = field(default_factory=list)  # per new token (rows, vocab)
    attentions: list[tuple[Tensor, ...]] = field(default_factory=list)  # per forward pass a tensor for each layer
    hidden_states: list[tuple[Tensor, ...]] = field(default_factory=list)  # per forward pass a tensor for each layer


@dataclass
class Decoding:
    """Everything that a strategy needs to continue the prompts of one call.

    Attributes:
        model: the language model.
        settings: the settings of the call, complete.
        prompt: the prompts, with one row for each text or beam.
        limit: maximum number of new tokens.
        processors: change the logits before a token is chosen.
        criteria: end rows, in addition to the limit and the eos tokens.
        streamer: receives the prompt and each token.
        generator: the random generator; None for PyTorch's global one.
        runner: computes the forward passes.
        collected: the optional outputs.
    """

    model: LanguageModel
    settings: GenerationConfig
    prompt: Prompt
    limit: int
    processors: Sequence[Processor]
    criteria: Sequence[Criterion]
    streamer: Streamer | None
    generator: torch.Generator | None
    runner: Forward
    collected: Collected = field(default_factory=Collected)

    @property
    def pad(self) -> int:
        """The token that fills rows that have ended: the pad token, or the first eos token."""
        pad, eos = self.settings.pad_token_id, self.settings.eos_token_ids
        return pad if pad is not None else (eos[0] if eos else 0)

    def process(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Returns the scores that the next token is chosen from: logits, (rows, vocab), after all processors."""
        logits = logits.clone()  # a processor may change its argument
        for processor in self.processors:
            logits = processor(ids, logits)
        return logits

    def ended(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns for each row whether its last token ends it: bool, (rows,)."""
        eos = torch.tensor(self.settings.eos_token_ids, device=ids.device, dtype=ids.dtype)
        ended = torch.isin(ids[:, -1], eos)
        for criterion in self.criteria:
            ended = ended | torch.as_tensor(criterion(ids, scores), device=ids.device)
        return ended

    def requests(self, output: str) -> bool:
        """Returns whether the settings request an optional output, such as "scores"."""
        return bool(getattr(self.settings, f"output_{output}", False))

    def record(self, scores: Tensor, logits: Tensor, out: CausalLMOutputWithPast) -> None:
        """Collects the optional outputs of one step.

        Args:
            scores: (rows, vocab), the processed scores.
            logits: (rows, vocab), the logits of the model.
            out: the output of the forward pass.
        """
        values = {
            "scores": scores, "logits": logits, "attentions": out.attentions, "hidden_states": out.hidden_states
        }  # fmt: skip
        for name, value in values.items():
            if self.requests(name):
                getattr(self.collected, name).append(value)

    def optional_outputs(self, cache: Any) -> dict[str, Any]:
        """Returns the fields of an output that `record` collected, and the cache."""
        names = ("scores", "logits", "attentions", "hidden_states")
        collected = {name: tuple(getattr(self.collected, name)) for name in names if self.requests(name)}
        return {**collected, "past_key_values": cache if isinstance(cache, KVCache) else None}

    def output(self, ids: Tensor, cache: Any) -> GenerateDecoderOnlyOutput:
        """Returns the texts, `ids`, with the optional outputs that the settings request."""
        return GenerateDecoderOnlyOutput(ids, **self.optional_outputs(cache))


def step(decoding: Decoding, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any, CausalLMOutputWithPast]:
    """Makes one forward pass.

    Args:
        decoding: the call.
        ids: (rows, tokens), all tokens so far.
        mask: (rows, cached + new tokens).
        cache: the cache of the previous step; None at first.

    Returns:
        The logits of the next token, (rows, vocab), float32; the new cache; the complete output of the model.
    """
    out = decoding.runner.forward(
        ids, mask, cache, attentions=decoding.requests("attentions"), hidden_states=decoding.requests("hidden_states")
    )
    assert out.logits is not None
    return out.logits[:, -1].float(), out.past_key_values, out


def decode(decoding: Decoding, choose: Callable[[Tensor], Tensor]) -> GenerateDecoderOnlyOutput:
    """Continues each row on its own until it ends.

    Args:
        decoding: the call.
        choose: returns the next tokens, (rows,), from scores, (rows, vocab).
    """
    ids, mask, cache = decoding.prompt.ids, decoding.prompt.mask, decoding.prompt.cache
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    if decoding.streamer is not None:
        decoding.streamer.put(ids.cpu())
    for _ in range(decoding.limit):
        logits, cache, out = step(decoding, ids, mask, cache)
        scores = decoding.process(ids, logits)
        decoding.record(scores, logits, out)
        check_finite(scores)
        token = torch.where(unfinished, choose(scores), decoding.pad)  # (rows,)
        ids = torch.cat((ids, token[:, None]), dim=1)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        if decoding.streamer is not None:
            decoding.streamer.put(token.cpu())
        unfinished = unfinished & ~decoding.ended(ids, scores)
        if not unfinished.any():
            break
    if decoding.streamer is not None:
        decoding.streamer.end()
    return decoding.output(ids, cache)


def check_finite(scores: Tensor) -> None:
    """Raises RequestError if the largest score of a row, (rows, vocab), is NaN or infinite."""
    best = scores.amax(dim=-1)  # (rows,); NaN if any score is NaN
    if not best.isfinite().all():
        row = int((~best.isfinite()).nonzero()[0, 0])
        raise RequestError(
            f"the largest logit of row {row} is {float(best[row])}; it must be finite. Check the weights (NaN? too "
            "large for float16?), logits_processor, and whether temperature is close to 0"
        )
