"""Checks of the arguments of `generate()`, and of the methods that run one strategy, before any of them is used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.config.pruning import cached_heads
from puna.errors import ArgumentError, RequestError, show, show_bytes
from puna.model.checks import check_tensor
from puna.model.generation.loop import LanguageModel

_FUNCTION_LISTS = ("logits_processor", "logits_warper", "stopping_criteria")
_METHODS = {
    "streamer": (("put", "end"), "pass an object such as TextStreamer(tokenizer)"),
    "beam_scorer": (("process", "finalize"), "pass a BeamSearchScorer"),
    "constrained_beam_scorer": (("process", "finalize"), "pass a ConstrainedBeamSearchScorer"),
    "assistant_model": (("forward", "prepare_inputs_for_generation"), "pass a model, such as a LlamaForCausalLM"),
    "tokenizer": (("decode",), "pass the model's tokenizer"),
    "assistant_tokenizer": (("decode",), "pass the assistant's tokenizer"),
}
"""For each argument that is an object, the methods that are called, and the remedy."""

_TENSORS = ("attention_mask", "position_ids", "negative_prompt_ids", "negative_prompt_attention_mask")

_MOST_BEAMS = 10_000
"""Maximum of `num_beams`; with more beams, each token takes seconds even for the smallest models."""


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Checks the types of arguments by their names; None is valid for all of them.

    Raises:
        ArgumentError: an argument has the wrong type.
    """
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _FUNCTION_LISTS:
            _check_functions(name, value)
        elif name in _METHODS:
            methods, remedy = _METHODS[name]
            if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
                raise ArgumentError(f"{name} is {show(value)}; it must have {' and '.join(methods)}: {remedy}")
        elif name in _TENSORS:
            check_tensor(name, value)
        elif name == "prefix_allowed_tokens_fn" and not callable(value):
            raise ArgumentError(f"{name} is {show(value)}; it must be a function (prompt index, ids) -> token ids")
        elif name == "generator" and not isinstance(value, torch.Generator):
            raise ArgumentError(f"generator is {show(value)}; it must be a torch.Generator, or pass seed, a number")
        elif name in ("synced_gpus", "use_model_defaults") and (
            isinstance(value, Tensor) or value not in (True, False)
        ):
            raise ArgumentError(f"{name} is {show(value)}; it must be True, False or None")


def _check_functions(name: str, value: Any) -> None:
    if callable(value) and not isinstance(value, list):
        raise ArgumentError(f"{name} is {show(value)}, one function; pass a list of them: {name}=[function]")
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Tensor):
        raise ArgumentError(f"{name} is {show(value)}; it must be a list of functions")
    for item in value:
        if not callable(item):
            raise ArgumentError(f"{name} contains {show(item)}; each item must be a function or an object of its class")


def check_copies(model: LanguageModel, settings: GenerationConfig, prompts: int, tokens: int) -> None:
    """Refuses numbers of beams or answers whose scores and cache cannot fit into the memory of this machine.

    The device of an accelerator reports exhausted memory itself.

    Args:
        model: the model that computes the scores.
        settings: the numbers of beams and answers.
        prompts: number of prompts.
        tokens: tokens of prompt and answer.

    Raises:
        RequestError: there are too many beams, or the memory of this machine is too small.
    """
    if settings.num_beams > _MOST_BEAMS:
        raise RequestError(f"num_beams is {settings.num_beams}; the limit is {_MOST_BEAMS}. Few searches need over 10")
    copies = max(settings.num_beams, settings.num_return_sequences)
    scores = 4 * model.config.vocab_size * 4  # logits, log-probabilities, scores and sums, all float32
    cache = 2 * sum(cached_heads(model.config)) * model.config.head_dim * model.dtype.itemsize * tokens
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = prompts * copies * (scores + cache)
    if copies > 1 and needed > memory and model.device.type == "cpu":
        raise RequestError(
            f"{copies} beams or answers for each of {prompts} prompts need about {show_bytes(needed)} of memory, and "
            f"this machine has {show_bytes(memory)}; use at most {memory // (prompts * (scores + cache))} "
            "(num_beams, num_return_sequences)"
        )
