"""`from_pretrained`, with the arguments of transformers 4.34 to 5.x."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from puna.checkpoint import Checkpoint, open_checkpoint
from puna.checkpoint.huggingface import Reading
from puna.checkpoint.validation import full_names
from puna.config import GenerationConfig, LlamaConfig
from puna.config.generation.fields import DEFAULTS
from puna.errors import ArgumentError, CheckpointError, RequestError, show, suggestion
from puna.files import path_argument
from puna.hub import HubArguments, choose_token, local_path, parse
from puna.model.base import LlamaBase
from puna.model.huggingface.arguments import remaining_arguments
from puna.model.huggingface.placement import DeviceLike, DeviceMap, choose_placement
from puna.model.loading import Loading, choose_dtype, load, memory_errors

Self = TypeVar("Self", bound="FromPretrained")


class FromPretrained(LlamaBase):
    """Class methods that create models."""

    name_or_path: str = ""
    """The first argument of `from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | Path | None,
        *model_args: Any,
        config: LlamaConfig | str | Path | None = None,
        cache_dir: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: DeviceLike | None = None,
        device_map: DeviceMap | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        offload_folder: str | Path | None = None,
        offload_buffers: bool = False,
        keep_quantized: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        output_loading_info: bool = False,
        subfolder: str = "",
        variant: str | None = None,
        gguf_file: str | None = None,
        key_mapping: Mapping[str, str] | None = None,
        generation_config: GenerationConfig | None = None,
        use_auth_token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Loads a model from a Hugging Face folder, a GGUF file or the hub, in evaluation mode.

        A head that the checkpoint lacks is initialised at random, with a warning. Any other missing or superfluous
        tensor is an error. Memory is needed once for the weights and once for the largest tensor.

        Args:
            pretrained_model_name_or_path: a folder or a file on this machine, or a model of the hub (owner/name), which
                is downloaded; None with `config` and `state_dict`.
            model_args: further arguments of a class that is derived from puna's classes.
            config: replaces the checkpoint's configuration; a LlamaConfig, or the path or name of one.
            ignore_mismatched_sizes: initialise at random, with a warning, each tensor that has another shape.
            use_safetensors: True reads only safetensors files, False only PyTorch files, which are never unpickled.
            dtype: type of the weights in memory: float32 by default, "auto" for the type they are stored in (float32 if
                they are quantised); `torch_dtype` is the older name.
            device: the device of the weights; the CPU by default.
            device_map: transformers' form of `device`: a name, a mapping from modules to devices, or "auto",
                "balanced", "balanced_low_0" or "sequential", which distribute the model over GPUs, the CPU and the
                disk. Several devices need the package accelerate. The model's `hf_device_map` shows the result.
            max_memory: for an automatic map, the memory to use on each device, such as {0: "10GiB", "cpu": "30GiB"}.
            offload_folder: where a map with "disk" keeps weights.
            offload_buffers: move buffers together with offloaded weights.
            keep_quantized: keep quantised matrices packed in their format and dequantise each when it is used, so that
                the model needs about as much memory as its file. Packed matrices are constants, on which adapters can
                be trained; `dequantize()` converts them to float ones. Formats: Q8_0 to Q4_0 and Q6_K to Q2_K.
            state_dict: tensors to load instead of those of the checkpoint, by Hugging Face's names.
            output_loading_info: also return a dictionary of the lists `missing_keys`, `unexpected_keys`,
                `mismatched_keys` and `error_msgs`.
            subfolder: a folder inside the model's folder or repository.
            variant: part of the names of the weight files: model.VARIANT.safetensors.
            gguf_file: the name of a GGUF file in the folder or repository.
            key_mapping: regular expressions, and the texts that replace their matches in the names of tensors.
            generation_config: replaces the defaults of `generate()`.
            revision, token, cache_dir, force_download, local_files_only: options of the hub; not used for a local path.
            use_auth_token: the older name of `token`.
            overrides: fields that replace those of the configuration, such as `num_labels`, `rope_scaling`,
                `attn_implementation` or `use_cache`; further arguments of transformers, most of which have no effect
                (`low_cpu_mem_usage`, `trust_remote_code`) or are refused with a remedy (`load_in_4bit`); any other
                argument is passed to the class, as in transformers.

        Returns:
            The model; with `output_loading_info`, also the dictionary.

        Raises:
            ModelNotFoundError: if there is no model at the path, or no such weight files.
            CheckpointError: if the files are damaged, or do not match the configuration; a ShapeError if only shapes
                differ.
            ConfigError: if the model is not a LLaMA, or an argument is out of range.
            BackendError: if PyTorch has no such device here, or the memory is exhausted.
            RequestError: if arguments contradict each other or are not supported; or a matrix is in a format that
                cannot be kept.
            TypeError: if an argument is unknown.
        """
        path = pretrained_model_name_or_path
        hub: HubArguments = {
            "revision": revision, "token": choose_token(token, use_auth_token), "cache_dir": cache_dir,
            "force_download": force_download, "local_files_only": local_files_only,
        }  # fmt: skip
        _check_types(key_mapping, generation_config)
        arguments = remaining_arguments(path, overrides)
        if path is not None and parse(path) is not None:  # before the download
            _check_known(cls, split_overrides(LlamaConfig(), arguments)[1])
        if config is not None and not isinstance(config, LlamaConfig):
            config = LlamaConfig.from_pretrained(config, **hub)
        placement = choose_placement(device, device_map, max_memory, offload_folder, offload_buffers)
        own_heads = frozenset(_own_tensors(cls, config, model_args, arguments))
        reading = Reading(cls.head, own_heads, config, variant, use_safetensors, key_mapping or {}, pruned_heads=True)
        checkpoint = None
        if path is not None:
            files = _find(path, subfolder, gguf_file, reading, hub)
            checkpoint = open_checkpoint(files, reading=reading)
        base = config if config is not None else None if checkpoint is None else checkpoint.config
        if base is None:
            raise RequestError("the path is None; pass config and state_dict, or the path of a model")
        fields, rest = split_overrides(base, arguments)
        _check_known(cls, rest)
        merged = LlamaConfig.from_dict(base.to_dict(), **fields)
        tensors = _tensors(checkpoint, state_dict, reading, merged)
        weights_dtype = choose_dtype(dtype if dtype is not None else torch_dtype, tensors)
        source = "the state dict" if state_dict is not None or checkpoint is None else checkpoint.path
        loading = Loading(
            cls,
            tensors,
            merged,
            weights_dtype,
            placement,
            source,
            keep_quantized,
            ignore_mismatched_sizes,
            model_args,
            rest,
        )
        with memory_errors():
            model, comparison = load(loading)
        model.name_or_path = "" if path is None else str(path)
        if model.can_generate() and checkpoint is not None and checkpoint.generation_config is not None:
            stored = checkpoint.generation_config
            if stored != GenerationConfig.from_model_config(checkpoint.config):  # else it follows the configuration
                model.generation_config = stored
                stored.update(**{name: value for name, value in arguments.items() if name in DEFAULTS})
        if model.can_generate() and generation_config is not None:
            model.generation_config = generation_config
        return (model, comparison.to_dict()) if output_loading_info else model  # type: ignore[return-value]

    @classmethod
    def _from_config(cls: type[Self], config: LlamaConfig, **options: Any) -> Self:
        """Returns a model with random weights, as `AutoModel.from_config` calls it.

        Args:
            options: `dtype` (or `torch_dtype`), the type of the weights: float32 by default, "auto" for that of the
                configuration; `attn_implementation`; any other argument is passed to the class.
        """
        names = ("dtype", "torch_dtype", "attn_implementation", "use_flash_attention_2", "trust_remote_code")
        special = {name: options.pop(name) for name in names if name in options}
        dtype = special.get("dtype") or special.get("torch_dtype")
        dtype = config.dtype if dtype == "auto" else dtype
        remaining_arguments(None, {name: value for name, value in special.items() if name == names[3]})
        if implementation := special.get("attn_implementation"):
            config = deepcopy(config)
            config.attn_implementation = implementation
        model = cls(config, **options)
        return model if dtype is None else model.to(choose_dtype(dtype, {}))


def split_overrides(config: LlamaConfig, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments that replace fields of the configuration, and the others; None replaces nothing."""
    names = inspect.signature(LlamaConfig).parameters
    fields = {
        name: value
        for name, value in arguments.items()
        if name == "attn_implementation" or (name != "extra" and (name in names or hasattr(config, name)))
    }
    rest = {name: value for name, value in arguments.items() if name not in fields}
    return {name: value for name, value in fields.items() if value is not None}, rest


def _check_known(kind: type[LlamaBase], arguments: Mapping[str, Any]) -> None:
    """Raises ArgumentError if there are arguments that a class of puna does not have."""
    if not arguments or not kind.__module__.startswith("puna."):
        return
    name = next(iter(arguments))
    known = [*inspect.signature(FromPretrained.from_pretrained).parameters, *inspect.signature(LlamaConfig).parameters]
    hint = suggestion(name, known) or ", and the configuration has no such field"
    raise ArgumentError(f"{kind.__name__}.from_pretrained() got an unexpected keyword argument {name!r}{hint}")


def _check_types(key_mapping: Any, generation_config: Any) -> None:
    """Raises ArgumentError if one of these arguments of `from_pretrained` has the wrong type."""
    if key_mapping is not None and not isinstance(key_mapping, Mapping):
        raise ArgumentError(f"key_mapping is {show(key_mapping)}; it must be a dictionary of patterns and replacements")
    if generation_config is not None and not hasattr(generation_config, "to_dict"):
        raise ArgumentError(f"generation_config is {show(generation_config)}; it must be a GenerationConfig")


def _own_tensors(
    kind: type[LlamaBase], config: LlamaConfig | None, arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> list[str]:
    """Returns the names of tensors that only a class defined outside puna has: those of its head."""
    if kind.__module__.startswith("puna."):
        return []
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": None}  # fmt: skip
    fields, rest = split_overrides(config or LlamaConfig(), options)
    small = LlamaConfig.from_dict({} if config is None else config.to_dict(), **{**fields, **sizes})
    small.pruned_heads = {}
    with torch.device("meta"):
        model: nn.Module = kind(small, *arguments, **rest)
    known = ("model.", "lm_head.", "score.")
    return [name for name in model.state_dict() if hasattr(model, "model") and not name.startswith(known)]


def _find(path: str | Path, subfolder: str, gguf_file: str | None, reading: Reading, hub: HubArguments) -> Path:
    """Returns the local folder or GGUF file of a model; downloads a model of the hub."""
    if gguf_file is not None and parse(path) is not None:
        return local_path(f"{path}:{gguf_file}", "model", subfolder or "", **hub)
    folder = local_path(
        path, "model", subfolder or "", variant=reading.variant, use_safetensors=reading.use_safetensors, **hub
    )
    return folder if gguf_file is None else folder / path_argument(gguf_file, "gguf_file")


def _tensors(
    checkpoint: Checkpoint | None, state_dict: Mapping[str, Tensor] | None, reading: Reading, config: LlamaConfig
) -> Mapping[str, Any]:
    """Returns the tensors to load by their full names.

    Raises:
        RequestError: neither a path nor a state dict was passed.
        CheckpointError: the state dict has a head that differs from the embedding that the configuration ties it to.
    """
    if state_dict is None:
        if checkpoint is None:
            raise RequestError("the path and state_dict are both None; pass the path of a model, or its tensors")
        return checkpoint.tensors
    if not isinstance(state_dict, Mapping):
        raise ArgumentError(f"state_dict is {show(state_dict)}; it must be a dictionary of tensors: model.state_dict()")
    if wrong := [name for name, tensor in state_dict.items() if not isinstance(tensor, Tensor)]:
        raise RequestError(f"state_dict has {show(wrong[0])}, which is not a tensor; pass model.state_dict()")
    tensors: dict[str, Any] = dict(full_names(reading.rename(state_dict)))
    tensors = {name: tensor for name, tensor in tensors.items() if "rotary_emb" not in name}
    if "model.embed_tokens.weight" not in tensors:
        raise CheckpointError("the state dict has no model.embed_tokens.weight; pass the tensors of a LLaMA model")
    if config.tie_word_embeddings and (head := tensors.get("lm_head.weight")) is not None:
        if not torch.equal(head, tensors["model.embed_tokens.weight"]):
            raise CheckpointError(
                "tie_word_embeddings is true, but lm_head.weight of the state dict differs from "
                "model.embed_tokens.weight; set config.tie_word_embeddings to False to use both"
            )
        del tensors["lm_head.weight"]
    return tensors
