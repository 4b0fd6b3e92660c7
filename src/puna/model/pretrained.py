"""What all LLaMA classes share: initial weights, embeddings, gradient checkpointing, loading and saving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from puna.checkpoint import open_checkpoint
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import ConfigError, RequestError
from puna.hub import local_path
from puna.model.device import Place, choose_device
from puna.model.loading import choose_dtype, load, save

if TYPE_CHECKING:
    from puna.model.llama import LlamaModel

Self = TypeVar("Self", bound="LlamaPreTrainedModel")


def choose(asked: bool | None, default: bool) -> bool:
    """An argument of forward, or the configuration's default where it was not given."""
    return default if asked is None else asked


def _require_grad(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    output.requires_grad_(True)


def new_embedding(rows: int, width: int, padding_idx: int | None) -> nn.Embedding:
    """An embedding without values yet.

    The plain constructor draws some, which on the meta device makes PyTorch import its compiler: 2.5 s of a load.
    """
    empty = torch.empty(rows, width)
    embedding: nn.Embedding = nn.Embedding.from_pretrained(empty, False, padding_idx)  # type: ignore[no-untyped-call]
    return embedding


class LlamaPreTrainedModel(nn.Module):
    """Base of `LlamaModel` and the models with a head.

    Args:
        config: the shape of the model; its fields are checked again.

    Raises:
        ConfigError: when a field has a value no LLaMA model can have.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]  # where other libraries look for what to keep whole
    head: ClassVar[Literal["lm", "classification", "none"]] = "none"
    """What stands on the hidden states; `puna.checkpoint` names the heads of checkpoints alike."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        config.validate()  # its fields may have been set since it was built
        self.config = config
        self.name_or_path = ""
        self.generation_config = GenerationConfig.from_model_config(config)
        self._input_gradients: RemovableHandle | None = None
        self.attn_implementation: str = config.extra.get("attn_implementation") or "sdpa"
        if self.attn_implementation not in ("sdpa", "eager"):
            raise ConfigError(
                f"attn_implementation is {self.attn_implementation!r}; it must be 'sdpa', which picks flash kernels by "
                "itself, or 'eager'"
            )

    @classmethod
    def from_pretrained(
        cls: type[Self],
        path: str | Path,
        *,
        config: LlamaConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: Place | None = None,
        device_map: Place | Mapping[str, Place] | None = None,
        low_cpu_mem_usage: bool | None = None,
        attn_implementation: str | None = None,
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
        """The model in a Hugging Face folder, a GGUF file or the hub, in evaluation mode.

        A head the checkpoint does not have is drawn anew, with a warning.

        Args:
            path: a folder or a file on this machine, or a model of the hub (owner/name), which is downloaded.
            config: used in place of the checkpoint's.
            dtype: of the weights in memory: float32 by default, "auto" for the type they are stored in (float32 where
                they are quantised); `torch_dtype` is the older name.
            device: where the weights go; the CPU by default.
            device_map: the same in the reference's words, for one device: its name, {"": name}, or "auto", a GPU where
                there is one.
            low_cpu_mem_usage: has no effect: weights are never held twice.
            attn_implementation: "sdpa" (default) or "eager".
            num_labels, id2label, label2id, problem_type: of a classification head, in place of the configuration's.
            use_cache, output_attentions, output_hidden_states, return_dict, pad_token_id, rope_scaling,
                attention_dropout: fields of the configuration, in place of the checkpoint's; None leaves them as they
                are. Other fields are changed in a `config`.
            revision, token, cache_dir, force_download, local_files_only: how to fetch from the hub; without effect on
                a local path.

        Raises:
            ModelNotFoundError: there is nothing at `path`.
            CheckpointError: the files are damaged, or do not fit the configuration.
            ConfigError: the configuration is not a LLaMA's, or an argument is out of range.
            BackendError: PyTorch has no such device here.
            RequestError: arguments contradict each other, or ask for several devices.
        """
        place = choose_device(device, device_map)
        found = local_path(
            path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        checkpoint = open_checkpoint(found)
        asked = {
            "attn_implementation": attn_implementation,
            "num_labels": num_labels,
            "id2label": id2label,
            "label2id": label2id,
            "problem_type": problem_type,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
            "pad_token_id": pad_token_id,
            "rope_scaling": rope_scaling,
            "attention_dropout": attention_dropout,
        }
        overrides = {name: value for name, value in asked.items() if value is not None}
        fields = (config or checkpoint.config).to_dict()
        wanted = LlamaConfig.from_dict(fields, **overrides)
        kind = dtype if dtype is not None else torch_dtype
        # By its name, so that a torch.dtype has to be one of those that weights can have.
        chosen = choose_dtype(None if kind is None else str(kind).removeprefix("torch."), checkpoint)
        model = load(cls, checkpoint, wanted, chosen, place)
        model.name_or_path = str(path)
        if checkpoint.generation_config is not None:
            model.generation_config = checkpoint.generation_config
        return model

    def save_pretrained(
        self, folder: str | Path, max_shard_size: int | str = "5GB", safe_serialization: bool = True
    ) -> None:
        """Writes config.json, generation_config.json (with a language model's head) and model.safetensors.

        Args:
            folder: is made if needed.
            max_shard_size: bytes or a string such as "2GB"; larger models are split into several files with an index.
            safe_serialization: only True: weights are written as safetensors, which every release reads.
        """
        if not safe_serialization:
            raise RequestError("safe_serialization is False; only safetensors are written, leave it True")
        save(self, folder, max_shard_size)

    def init_weights(self, module: nn.Module) -> None:
        """Draws the initial weights of a linear layer or embedding; others, and those without memory, stay as they are.

        Normal(0, initializer_range), biases and the padding row 0 (the reference's code; its documentation speaks of a
        truncated normal).
        """
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.is_meta:
            return
        nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has `generate()`."""
        return cls.head == "lm"

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Parameters, tied ones counted once; without the token embeddings (and a head tied to them) if so asked."""
        left_out = self.get_input_embeddings().weight if exclude_embeddings else None
        counted = (p for p in self.parameters() if p is not left_out)
        return sum(p.numel() for p in counted if p.requires_grad or not only_trainable)

    # ---- embeddings

    def get_decoder(self) -> LlamaModel:
        """The `LlamaModel` inside."""
        raise NotImplementedError

    @property
    def base_model(self) -> LlamaModel:
        """The `LlamaModel` inside, under the reference's other name."""
        return self.get_decoder()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self.get_decoder().embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embeddings."""
        self.get_decoder().embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """The language model's head; None for a model without one."""
        return None

    def tie_weights(self) -> None:
        """Makes the head share the embedding matrix, where the configuration says so."""
        head = self.get_output_embeddings()
        if head is not None and self.config.tie_word_embeddings:
            head.weight = self.get_input_embeddings().weight

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Grows or cuts the vocabulary of embeddings and head to `new_num_tokens` rows; new rows are drawn anew.

        Args:
            new_num_tokens: rows; by default as many as there are.
            pad_to_multiple_of: rounds the rows up.

        Returns:
            The embeddings; `config.vocab_size` is their number of rows.
        """
        old = self.get_input_embeddings()
        rows = old.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        padding = self.config.pad_token_id
        if rows < 1 or (padding is not None and rows <= padding):
            raise RequestError(f"new_num_tokens is {rows}; it must leave a row and the padding token ({padding})")
        if rows == old.num_embeddings:
            return old
        new = new_embedding(rows, self.config.hidden_size, padding).to(old.weight)
        self._copy_rows(old, new)
        self.set_input_embeddings(new)
        head = self.get_output_embeddings()
        if head is not None:
            resized = nn.Linear(head.in_features, rows, bias=False, device=head.weight.device, dtype=head.weight.dtype)
            self._copy_rows(head, resized)
            head.weight, head.out_features = resized.weight, rows
            self.tie_weights()
        self.config.vocab_size = rows
        return new

    def _copy_rows(self, old: nn.Embedding | nn.Linear, new: nn.Embedding | nn.Linear) -> None:
        self.init_weights(new)
        kept = min(old.weight.shape[0], new.weight.shape[0])
        with torch.no_grad():
            new.weight[:kept] = old.weight[:kept]
        new.weight.requires_grad_(old.weight.requires_grad)

    # ---- training

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Trades time for memory in training: each layer is computed again on the way back; no cache is returned.

        Args:
            gradient_checkpointing_kwargs: None or {"use_reentrant": False}; the re-entrant kind loses gradients when
                the embeddings are frozen and is not offered.
        """
        if dict(gradient_checkpointing_kwargs or {}) not in ({}, {"use_reentrant": False}):
            raise RequestError(
                f"gradient_checkpointing_kwargs is {gradient_checkpointing_kwargs!r}; the only setting is "
                "{'use_reentrant': False}"
            )
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keeps what the way back needs, as usual."""
        self.gradient_checkpointing = False

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on; the decoder knows, for all that share it."""
        return self.get_decoder().recomputes

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.get_decoder().recomputes = value

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Another name of `gradient_checkpointing`, for reading."""
        return self.gradient_checkpointing

    def enable_input_require_grads(self) -> None:
        """Makes the embedded tokens require gradients, for adapters over frozen embeddings."""
        self.disable_input_require_grads()
        self._input_gradients = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undoes `enable_input_require_grads`."""
        if self._input_gradients is not None:
            self._input_gradients.remove()
            self._input_gradients = None
