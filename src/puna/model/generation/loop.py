"""The common part of the decoding strategies: the inputs of a call, one forward pass, and a loop without beams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import RequestError
from puna.model.cache import KVCache, LegacyCache
from puna.model.generation.criteria import StoppingCriteriaList
from puna.model.generation.outputs import GenerateDecoderOnlyOutput
from puna.model.generation.processors.base import LogitsProcessorList
from puna.model.generation.prompt import Prompt
from puna.model.generation.settings import is_random
from puna.model.outputs import CausalLMOutputWithPast


class LanguageModel(Protocol):
    """The part of `LlamaForCausalLM` that generation uses, because it cannot import the class."""

    config: LlamaConfig
    generation_config: GenerationConfig
    generation_path: str | None
    """Which path the last call took: "native", or "torch: " and the reason."""
    warnings_issued: dict[str, Any]
    """Notices that are given once for a model, by key."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the logits; its signature lists the arguments that the model uses."""

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

    def get_output_embeddings(self) -> Any:
        """Returns the head, which computes logits from hidden states."""

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

    def past_key_values(self, cache: Any) -> KVCache | None:
        """Returns a cache in the form of the model's outputs; None without a cache."""


class TorchForward:
    """`Forward`, implemented by the PyTorch module.

    Args:
        model: the module.
        prompt: its embeddings are used while the cache is empty; its mask determines whether there is padding.
        use_cache: whether to keep keys and values; without them, each forward pass computes all tokens.
    """

    def __init__(self, model: LanguageModel, prompt: Prompt, use_cache: bool = True) -> None:
        self._model = model
        self._embeds = prompt.embeds
        self._positions = prompt.positions
        self._padded = not bool(prompt.mask.all())
        self._use_cache = use_cache
        self._extra = dict(prompt.extra)

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
        arguments = self._model.prepare_inputs_for_generation(
            ids,
            past_key_values=cache,
            attention_mask=mask,
            inputs_embeds=self._embeds,
            position_ids=self._uncached_positions(mask.shape[1], cache),
            use_cache=self._use_cache,
        )
        if not self._padded:
            arguments["attention_mask"] = None  # plain causal order has faster kernels
        if self._positions is not None and not self._use_cache:
            arguments["seq_idx"] = torch.zeros_like(arguments["position_ids"])  # one sequence, whatever its positions
        arguments |= {"output_attentions": attentions, "output_hidden_states": hidden_states, **self._extra}
        out: CausalLMOutputWithPast = self._model(**arguments, return_dict=True, logits_to_keep=keep)
        return out

    def _uncached_positions(self, total: int, cache: Any) -> Tensor | None:
        """Returns the positions of the uncached tokens: those given for the prompt, then consecutive numbers."""
        if self._positions is None:
            return None
        answer = torch.arange(1, total - self._positions.shape[1] + 1, device=self._positions.device)
        positions = torch.cat((self._positions, self._positions[:, -1:] + answer), dim=1)  # (rows, total)
        return positions[:, cache[0][0].shape[2] if cache else 0 :]

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """See `Forward`."""
        return cache if cache is None else KVCache.of(cache).reorder(rows)

    def crop(self, cache: Any, length: int) -> Any:
        """See `Forward`."""
        return cache if cache is None else KVCache.of(cache).crop(length)

    def past_key_values(self, cache: Any) -> KVCache | None:
        """See `Forward`."""
        return cache if isinstance(cache, KVCache) else None


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
        criteria: decide which rows have ended: maximum length, eos tokens, and the caller's criteria.
        streamer: receives the prompt and each token.
        generator: the random generator; None for PyTorch's global one.
        runner: computes the forward passes.
        collected: the optional outputs.
        synced: whether all processes of `torch.distributed` make the same number of forward passes.
        assistant: the model that drafts tokens in assisted generation.
        tokenizers: those of the model and of the assistant, if they differ.
    """

    model: LanguageModel
    settings: GenerationConfig
    prompt: Prompt
    limit: int
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    streamer: Streamer | None
    generator: torch.Generator | None
    runner: Forward
    collected: Collected = field(default_factory=Collected)
    synced: bool = False
    assistant: LanguageModel | None = None
    tokenizers: tuple[Any, Any] = (None, None)

    @property
    def pad(self) -> int:
        """The token that fills rows that have ended: the pad token, or the first eos token."""
        pad, eos = self.settings.pad_token_id, self.settings.eos_token_ids
        return pad if pad is not None else (eos[0] if eos else 0)

    def process(self, ids: Tensor, logits: Tensor, **context: Any) -> Tensor:
        """Returns the scores that the next token is chosen from: logits, (rows, vocab), after all processors.

        `context` has further arguments for the processors whose signature has them.
        """
        return self.processors(ids, logits.clone(), **context)  # a processor may change its argument

    def ended(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns for each row whether its last token ends it: bool, (rows,).

        As in transformers, criteria receive the scores of all steps if the call returns them.
        """
        ended: Tensor = self.criteria(ids, tuple(self.collected.scores) if self.requests("scores") else scores)
        return ended.as_subclass(Tensor)

    def all_finished(self, finished: bool) -> bool:
        """Returns whether this process, and with `synced` all others, have finished."""
        if not self.synced or not distributed.is_initialized():
            return finished
        unfinished = torch.tensor(0.0 if finished else 1.0, device=self.prompt.ids.device)
        distributed.all_reduce(unfinished)
        return not bool(unfinished)

    def wait_for_others(self, ids: Tensor, mask: Tensor, cache: Any) -> None:
        """With `synced`, repeats the forward pass of the last token until all other processes have finished."""
        while not self.all_finished(True):
            self.runner.forward(ids, mask, cache)

    def requests(self, output: str) -> bool:
        """Returns whether the settings request an optional output, such as "scores"."""
        settings = self.settings
        return bool(settings.return_dict_in_generate and getattr(settings, f"output_{output}"))

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
        needed = self.settings.return_dict_in_generate or self.prompt.cache is not None
        past = self.runner.past_key_values(cache) if needed else None
        return {**collected, "past_key_values": past}

    def output(self, ids: Tensor, cache: Any) -> GenerateDecoderOnlyOutput:
        """Returns the texts, `ids`, with the optional outputs that the settings request."""
        return GenerateDecoderOnlyOutput(ids, **self.optional_outputs(cache))


def is_sharded(model: Any) -> bool:
    """Returns whether FSDP has distributed the weights over several processes."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
        return False
    return any(type(module).__name__.startswith(("FSDP", "FullyShardedDataParallel")) for module in model.modules())


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


def decode(
    decoding: Decoding,
    choose: Callable[[Tensor], Tensor],
    forward: Callable[[Decoding, Tensor, Tensor, Any], tuple[Tensor, Any, CausalLMOutputWithPast]] = step,
) -> GenerateDecoderOnlyOutput:
    """Continues each row on its own until it ends.

    Args:
        decoding: the call.
        choose: returns the next tokens, (rows,), from scores, (rows, vocab).
        forward: makes one forward pass, as `step` does.
    """
    ids, mask, cache = decoding.prompt.ids, decoding.prompt.mask, decoding.prompt.cache
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    if decoding.streamer is not None:
        decoding.streamer.put(ids.cpu())
    finished = False
    while not decoding.all_finished(finished):
        logits, cache, out = forward(decoding, ids, mask, cache)
        if finished:  # only other processes are not finished: the same forward pass is repeated
            cache = decoding.runner.crop(cache, mask.shape[1] - 1)
            continue
        scores = decoding.process(ids, logits)
        assert out.logits is not None
        decoding.record(scores, out.logits[:, -1].float(), out)
        check_scores(scores, logits, unfinished, is_random(decoding.settings))
        token = torch.where(unfinished, choose(scores), decoding.pad)  # (rows,)
        ids = torch.cat((ids, token[:, None]), dim=1)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        if decoding.streamer is not None:
            decoding.streamer.put(token.cpu())
        unfinished = unfinished & ~decoding.ended(ids, scores)
        finished = not bool(unfinished.any())
    if decoding.streamer is not None:
        decoding.streamer.end()
    return decoding.output(ids, cache)


def check_scores(scores: Tensor, logits: Tensor, unfinished: Tensor, random: bool) -> None:
    """Checks that each row has a token to choose.

    A processor may raise a score to infinity: the token can then be chosen as the most likely one, but not drawn.

    Args:
        scores: (rows, vocab).
        logits: (rows, vocab), the logits of the model.
        unfinished: bool, (rows,).
        random: whether tokens are drawn; then finished rows need valid scores, too.

    Raises:
        RequestError: if the largest score of a row is NaN or infinite.
    """
    best = scores.amax(dim=-1)  # (rows,); NaN if any score is NaN
    valid = best.isfinite()
    if valid.all():
        return
    if not random:
        valid = valid | ~unfinished | (best.isposinf() & logits.amax(dim=-1).isfinite())
    if not valid.all():
        row = int((~valid).nonzero()[0, 0])
        raise RequestError(
            f"the largest logit of row {row} is {float(best[row])}; it must be finite. Check the weights (NaN? too "
            "large for float16?), logits_processor, and whether temperature is close to 0"
        )
