"""Base class of the models: loading and saving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from puna.checkpoint import open_checkpoint
from puna.config import LlamaConfig
from puna.errors import RequestError
from puna.hub import local_path
from puna.model.base import LlamaBase
from puna.model.device import DeviceLike, choose_device
from puna.model.loading import choose_dtype, load, save

Self = TypeVar("Self", bound="LlamaPreTrainedModel")


class LlamaPreTrainedModel(LlamaBase):
    """Base class of `LlamaModel` and the models with a head, with Hugging Face's name.

    Args:
        config: the model's configuration; its fields are checked again.

    Raises:
        ConfigError: if a field has a value that no LLaMA model can have.
    """

    @classmethod
    def from_pretrained(
        cls: type[Self],
        path: str | Path,
        *,
        config: LlamaConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: DeviceLike | None = None,
        device_map: DeviceLike | Mapping[str, DeviceLike] | None = None,
        low_cpu_mem_usage: bool | None = None,
        attn_implementation: str | None = None,
        keep_quantized: bool = False,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        problem_type: str | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pad_token_id: int | None = None,
        rope_scaling: Mapping[str, Any] | None = None,
        attention_dropout: float | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a model from a Hugging Face folder, a GGUF file or the hub, in evaluation mode.

        A head that the checkpoint lacks is initialised at random, with a warning.

        Args:
            path: a folder or a file on this machine, or a model of the hub (owner/name), which is downloaded.
            config: replaces the checkpoint's configuration.
            dtype: type of the weights in memory: float32 by default, "auto" for the type they are stored in (float32 if
                they are quantised); `torch_dtype` is the older name.
            device: the device of the weights; the CPU by default.
            device_map: transformers' form of `device`: a name, {"": name}, or "auto" (a GPU if there is one).
            low_cpu_mem_usage: has no effect: weights are never held twice.
            attn_implementation: "sdpa" (default) or "eager".
            keep_quantized: keep quantised matrices packed in their format and dequantise each when it is used, so that
                the model needs about as much memory as its file. Packed matrices are constants, on which adapters can
                be trained; `dequantize()` converts them to float ones. Formats: Q8_0 to Q4_0 and Q6_K to Q2_K.
            num_labels, id2label, label2id, problem_type: settings of a classification head, which replace those of the
                configuration.
            use_cache, output_attentions, output_hidden_states, return_dict, pad_token_id, rope_scaling,
                attention_dropout: replace fields of the configuration unless None. To change other fields, pass a
                `config`.
            revision, token, cache_dir, force_download, local_files_only: options of the hub; not used for a local path.

        Raises:
            ModelNotFoundError: if there is no model at `path`.
            CheckpointError: if the files are damaged, or do not match the configuration.
            ConfigError: if the model is not a LLaMA, or an argument is out of range.
            BackendError: if PyTorch has no such device here.
            RequestError: if arguments contradict each other, or name several devices; or a matrix is in a format that
                cannot be kept.
        """
        target = choose_device(device, device_map)
        source = local_path(
            path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        checkpoint = open_checkpoint(source)
        arguments = {
            "attn_implementation": attn_implementation, "num_labels": num_labels, "id2label": id2label,
            "label2id": label2id, "problem_type": problem_type, "use_cache": use_cache,
            "output_attentions": output_attentions, "output_hidden_states": output_hidden_states,
            "return_dict": return_dict, "pad_token_id": pad_token_id, "rope_scaling": rope_scaling,
            "attention_dropout": attention_dropout,
        }  # fmt: skip
        overrides = {name: value for name, value in arguments.items() if value is not None}
        config = LlamaConfig.from_dict((config or checkpoint.config).to_dict(), **overrides)
        dtype = dtype if dtype is not None else torch_dtype
        # Passed by name, so that choose_dtype also rejects a torch.dtype that weights cannot have, such as int8.
        dtype = choose_dtype(None if dtype is None else str(dtype).removeprefix("torch."), checkpoint)
        model = load(cls, checkpoint, config, dtype, target, keep_quantized)
        model.name_or_path = str(path)
        if checkpoint.generation_config is not None:
            model.generation_config = checkpoint.generation_config
        return model

    def save_pretrained(
        self, folder: str | Path, max_shard_size: int | str = "5GB", safe_serialization: bool = True
    ) -> None:
        """Writes config.json, generation_config.json (for a language model) and model.safetensors.

        Packed matrices cannot be saved: call `dequantize()` first, or convert the file that they came from.

        Args:
            folder: created if needed.
            max_shard_size: bytes or a string such as "2GB"; larger models are split into several files with an index.
            safe_serialization: must be True: weights are written only as safetensors, which every release reads.
        """
        if not safe_serialization:
            raise RequestError("safe_serialization is False; it must be True, since only safetensors files are written")
        save(self, folder, max_shard_size)
