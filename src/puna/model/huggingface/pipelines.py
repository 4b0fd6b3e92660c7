"""`pipeline`: transformers' pipelines with the models and tokenizers of puna; exists only for compatibility.

This is the only function that needs transformers, which must be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from puna.errors import MissingExtraError, RequestError, show
from puna.model.huggingface.auto import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from puna.tokenizer import AutoTokenizer

_CLASSES: dict[str, Any] = {
    "text-generation": AutoModelForCausalLM,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "feature-extraction": AutoModel,
}
_SYNONYMS = {"sentiment-analysis": "text-classification", "ner": "token-classification"}

_HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def pipeline(
    task: str | None = None,
    model: nn.Module | str | Path | None = None,
    config: Any = None,
    tokenizer: Any = None,
    *,
    use_fast: bool = True,
    device: Any = None,
    device_map: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    trust_remote_code: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Returns `transformers.pipeline` for a LLaMA model, which puna loads.

    Args:
        task: "text-generation", "text-classification" ("sentiment-analysis"), "token-classification" ("ner") or
            "feature-extraction"; by default the task of the model's class.
        model: a model, or the path or the name from which it is loaded.
        config: replaces the configuration of a model that is loaded.
        tokenizer: a tokenizer, or a path; by default that of the model's files.
        use_fast: whether a tokenizer that is loaded is fast.
        device: the device of the pipeline, such as "cuda:0" or 0; by default the model stays where it is.
        device_map, dtype, torch_dtype, model_kwargs: arguments of `from_pretrained` for a model that is loaded.
        trust_remote_code: has no effect: no code of a model is executed.
        arguments: `revision`, `token` and other options of the hub; all others are passed to `transformers.pipeline`,
            such as `batch_size` or `max_new_tokens`.

    Raises:
        MissingExtraError: if transformers is not installed.
        RequestError: if the task is unknown, or there is no model or tokenizer.
    """
    try:
        import transformers
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            "pipeline() needs transformers; install it with: pip install transformers. Without it, puna.LLM generates "
            "text and classifies"
        ) from exc
    hub = {name: arguments.pop(name) for name in _HUB_OPTIONS if name in arguments}
    task = _find_task(task, model)
    if isinstance(model, str | Path):
        options = {"device_map": device_map, "dtype": dtype, "torch_dtype": torch_dtype, "config": config}
        set_options = {name: value for name, value in options.items() if value is not None}
        path, model = model, _CLASSES[task].from_pretrained(model, **set_options, **hub, **(model_kwargs or {}))
    else:
        path = getattr(model, "name_or_path", "")
    if tokenizer is None or isinstance(tokenizer, str | Path):
        if not (source := tokenizer or path):
            raise RequestError("the model was not loaded from a path; pass tokenizer=, a tokenizer or its path")
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=use_fast, **hub)
    build: Any = transformers.pipeline  # without its overloads, which know only the classes of transformers
    return build(task, model=model, tokenizer=tokenizer, device=device, **arguments)


def _find_task(task: str | None, model: object) -> str:
    """Returns the name of the task, or that of the model's class; raises RequestError if it is unknown."""
    if model is None:
        raise RequestError("pipeline() needs a model; pass model=, a model or its path")
    if task is None and isinstance(model, nn.Module):
        task = next((name for name, auto in _CLASSES.items() if auto.has_class(model)), None)
    name = _SYNONYMS.get(task or "", task)
    if name not in _CLASSES:
        raise RequestError(f"task is {show(task)}; puna's models support {', '.join(map(repr, _CLASSES))}")
    return name
