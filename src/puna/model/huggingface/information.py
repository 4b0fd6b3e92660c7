"""Facts about a model, and helpers that other libraries call, with the names of `PreTrainedModel`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import ArgumentError, BackendError, RequestError, show
from puna.model.base import LlamaBase, check_attention
from puna.model.checks import check_tensor, is_traced
from puna.model.huggingface.masks import causal_mask, extended, layer_masks
from puna.model.losses import next_token_loss
from puna.model.quantized import PackedMatrix, dequantize_modules
from puna.native.memory import resident_memory

_DUMMY_INPUTS = [[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]]
"""The ids of `dummy_inputs` in transformers."""


class Information(LlamaBase):
    """Attributes and methods of `PreTrainedModel` that describe a model.

    `supports_*` and `_supports_*` state the features of puna's models. Attributes of tensor parallelism are empty:
    apply PyTorch's `fully_shard` or `parallelize_module` to the model instead.
    """

    config_class = LlamaConfig
    generation_config_class = GenerationConfig
    main_input_name = "input_ids"
    input_modalities = "text"
    output_modalities = "text"
    model_tags: list[str] | None = None
    is_parallelizable = False
    supports_tp_plan = supports_pp_plan = False
    supports_context_parallel = False
    tp_size = fsdp_size = tp_plan = ep_plan = pp_plan = fsdp_plan = None
    use_kernels = False
    loss_type: str | None = None  # transformers' name of the loss, by which the Trainer counts the tokens of a step
    accepts_loss_kwargs: ClassVar[bool] = False  # of the Trainer: whether every loss divides by num_items_in_batch

    _auto_class: ClassVar[str | None] = None
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]  # read by other libraries that shard models
    _skip_keys_device_placement = "past_key_values"
    _keep_in_fp32_modules: ClassVar[list[str] | None] = None
    _keep_in_fp32_modules_strict: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_load_missing: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_save: ClassVar[list[str] | None] = None
    _tied_weights_keys: ClassVar[list[str] | None] = None
    _tp_plan: ClassVar[dict[str, str]] = {}
    _pp_plan: ClassVar[dict[str, Any]] = {}
    _is_stateful = False
    _supports_sdpa = True
    _supports_flash_attn_2 = _supports_flash_attn = _supports_flex_attn = False
    _supports_cache_class = _supports_static_cache = _supports_quantized_cache = False
    _supports_attention_backend = False
    _can_compile_fullgraph = True

    @property
    def framework(self) -> str:
        """The name of the framework, "pt"."""
        return "pt"

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Arguments of a forward pass: the ids that transformers uses to test models."""
        return {"input_ids": torch.tensor(_DUMMY_INPUTS)}

    @property
    def can_record_outputs(self) -> dict[str, Any]:
        """Empty: forward returns hidden states and attention weights itself, without hooks."""
        return {}

    @property
    def loss_function(self) -> Callable[..., Tensor]:
        """The function that computes the loss of a causal language model; another one can be assigned.

        It is called as `loss_function(logits=, labels=, vocab_size=, num_items_in_batch=)`, as in transformers 5.x.

        Raises:
            AttributeError: if the class has another head.
        """
        if not self.can_generate():
            raise AttributeError(f"{type(self).__name__} computes its loss in forward() and has no loss_function")
        function: Callable[..., Tensor] = vars(self).get("_loss_function", next_token_loss)
        return function

    @loss_function.setter
    def loss_function(self, value: Callable[..., Tensor]) -> None:
        self._loss_function = value

    # ---- size and cost

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Returns the number of parameters; tied weights count once. `exclude_embeddings` also excludes a tied head.

        Values of packed matrices count as parameters that cannot be trained.
        """
        embeddings = self.get_input_embeddings()
        excluded = (
            {id(part) for part in (*embeddings.parameters(), *embeddings.modules())} if exclude_embeddings else ()
        )
        sizes = [
            p.numel() for p in self.parameters() if id(p) not in excluded and (p.requires_grad or not only_trainable)
        ]
        if not only_trainable:
            packed = [m for m in self.modules() if isinstance(m, PackedMatrix) and id(m) not in excluded]
            sizes += [matrix.rows * matrix.columns for matrix in packed]
        return sum(sizes)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Returns the bytes of the parameters and, by default, of the buffers, which include packed matrices."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def estimate_tokens(self, input_dict: Mapping[str, Any]) -> int:
        """Returns the number of elements of `input_ids`; 0, with a warning, if the inputs have none."""
        if not isinstance(input_dict, Mapping):
            raise ArgumentError(f"input_dict is {show(input_dict)}; it must be a dictionary with input_ids")
        if self.main_input_name in input_dict:
            check_tensor(self.main_input_name, input_dict[self.main_input_name])
            return int(input_dict[self.main_input_name].numel())
        warnings.warn(
            "the number of tokens cannot be estimated without input_ids; floating_point_ops returns 0", stacklevel=2
        )
        return 0

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Returns about the floating-point operations of a forward and backward pass: 6 per token and parameter.

        The estimate neglects attention (Kaplan et al., arXiv:2001.08361, section 2.1).
        """
        return 6 * self.estimate_tokens(input_dict) * self.num_parameters(exclude_embeddings=exclude_embeddings)

    # ---- masks

    def invert_attention_mask(self, encoder_attention_mask: Tensor) -> Tensor:
        """Returns the additive form of a mask (B, S) or (B, T, S), in the model's type."""
        return extended(encoder_attention_mask, (), self.dtype, causal=False)

    def get_extended_attention_mask(
        self,
        attention_mask: Tensor,
        input_shape: Sequence[int],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Returns the additive mask of `attention_mask`; in causal order if `config.is_decoder` is set.

        Args:
            attention_mask: (B, S) or (B, T, S), 1 for tokens to attend to.
            input_shape: (B, T).
            device: has no effect.
            dtype: the type of the result; the model's by default.
        """
        is_decoder = bool(getattr(self.config, "is_decoder", False))
        return extended(attention_mask, input_shape, dtype or self.dtype, is_decoder)

    @staticmethod
    def create_extended_attention_mask_for_decoder(
        input_shape: Sequence[int], attention_mask: Tensor, device: torch.device | None = None
    ) -> Tensor:
        """Returns a mask (B, 1, T, S) of 0 and 1 with causal order and the padding of `attention_mask`, (B, S)."""
        return causal_mask(attention_mask, input_shape[1])

    def get_head_mask(
        self, head_mask: Tensor | None, num_hidden_layers: int, is_attention_chunked: bool = False
    ) -> Tensor | list[None]:
        """Returns the mask of the heads of each layer, or a list of None; forward has no such argument."""
        if head_mask is None:
            return [None] * num_hidden_layers
        masks = layer_masks(head_mask, num_hidden_layers, self.dtype)
        return masks.unsqueeze(-1) if is_attention_chunked else masks

    def warn_if_padding_and_no_attention_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Warns if the first or last ids of a row are the padding id and there is no mask."""
        padding = self.config.pad_token_id
        if attention_mask is not None or padding is None or is_traced():
            return
        if not bool((input_ids[:, [-1, 0]] == padding).any()):
            return
        text = (
            "We strongly recommend passing in an `attention_mask` since your input_ids may be padded: the first or "
            f"last id of a row is the padding id, {padding}"
        )
        ends = self.config.eos_token_id if isinstance(self.config.eos_token_id, list) else [self.config.eos_token_id]
        if padding in (self.config.bos_token_id, *ends):
            text += (
                f". You may ignore this warning if your `pad_token_id` ({padding}) is identical to the `bos_token_id` "
                f"({self.config.bos_token_id}) or `eos_token_id` ({self.config.eos_token_id}), and your input is not "
                "padded"
            )
        warnings.warn(text, stacklevel=2)

    # ---- attention and compilation

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str], **options: Any) -> None:
        """Chooses "sdpa" or "eager" attention for the next calls.

        Args:
            attn_implementation: the name, or {"": name}.
            options: ignored if False or None (`allow_all_kernels`).

        Raises:
            ConfigError: if the implementation is not supported.
        """
        name = attn_implementation.get("") if isinstance(attn_implementation, Mapping) else attn_implementation
        if any(options.values()):
            raise RequestError(f"{', '.join(options)} cannot be set; puna uses PyTorch's own kernels of attention")
        for module in self.modules():
            if isinstance(module, LlamaBase):
                module.attn_implementation = check_attention(name)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Returns the implementation of attention that a name stands for: "sdpa" if it is None."""
        return check_attention(requested_attention or "sdpa")

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """Returns whether other programs can replace the attention function: False."""
        return cls._supports_attention_backend

    def get_compiled_call(self, compile_config: Any = None) -> Callable[..., Any]:
        """Returns `torch.compile` of the model, which is kept until `compile_config` changes.

        Args:
            compile_config: an object whose `to_dict()` returns arguments of `torch.compile`, or a dictionary of them.
        """
        if (
            compile_config is not None
            and not isinstance(compile_config, Mapping)
            and not hasattr(compile_config, "to_dict")
        ):
            raise ArgumentError(f"compile_config is {show(compile_config)}; it must be a dictionary or a CompileConfig")
        arguments = {} if compile_config is None else compile_config
        arguments = dict(arguments if isinstance(arguments, Mapping) else arguments.to_dict())
        state = vars(self)
        if state.get("_compile_arguments") != arguments:
            state["_compile_arguments"] = arguments
            state["_compiled_call"] = torch.compile(self.__call__, **arguments)
        compiled: Callable[..., Any] = state["_compiled_call"]
        return compiled

    def to_bettertransformer(self) -> NoReturn:
        """Raises BackendError: PyTorch's fused attention is used already."""
        raise BackendError("to_bettertransformer is not needed: attention uses PyTorch's fused kernels already")

    def reverse_bettertransformer(self) -> NoReturn:
        """Raises BackendError: no model was converted with `to_bettertransformer`."""
        raise BackendError("the model was not converted with to_bettertransformer; use it as it is")

    # ---- memory

    def add_memory_hooks(self) -> None:
        """Records in `mem_rss_diff` of each module how much its forward passes enlarge the memory of the process."""
        for module in self.modules():
            module.register_forward_pre_hook(_before_forward)
            module.register_forward_hook(_after_forward)
        self.reset_memory_hooks_state()

    def reset_memory_hooks_state(self) -> None:
        """Sets `mem_rss_diff` of each module to 0."""
        for module in self.modules():
            vars(module).update(mem_rss_diff=0, mem_rss_post_forward=0, mem_rss_pre_forward=0)

    # ---- parts of the model

    def dequantize(self, dtype: torch.dtype | None = None) -> Any:
        """Replaces matrices that stayed packed (`keep_quantized=True`) by float ones; returns self.

        The result is the model that `from_pretrained` returns without `keep_quantized`.

        Args:
            dtype: the type of the new matrices; the model's by default.
        """
        dequantize_modules(self, dtype or self.dtype)
        return self

    def retrieve_modules_from_names(
        self, names: Iterable[str], add_prefix: bool = False, remove_prefix: bool = False
    ) -> list[nn.Module]:
        """Returns the modules that contain the parameters `names`.

        Args:
            add_prefix, remove_prefix: add `base_model_prefix` to the names of this model's modules, or remove it.
        """
        names = list(names) if isinstance(names, Iterable) else [names]
        if not all(isinstance(name, str) for name in names):
            raise ArgumentError(f"names is {show(names)}; it must be a list of names of parameters")
        keys = {name.rpartition(".")[0] for name in names}
        keys |= {name.rpartition(".")[0].rpartition(".")[0] for name in names if name[-1:].isdigit()}
        prefix = f"{self.base_model_prefix}."

        def renamed(name: str) -> str:
            if remove_prefix:
                return name.removeprefix(prefix)
            return f"{prefix}{name}".removesuffix(".") if add_prefix else name

        return [module for name, module in self.named_modules() if renamed(name) in keys]

    def get_parameter_or_buffer(self, target: str) -> Tensor:
        """Returns the parameter or buffer of this name.

        Raises:
            AttributeError: if there is none.
        """
        if not isinstance(target, str):
            raise ArgumentError(f"target is {show(target)}; it must be the name of a parameter or buffer")
        owner, _, name = target.rpartition(".")
        value = getattr(self.get_submodule(owner), name, None)
        if not isinstance(value, Tensor):
            raise AttributeError(f"{show(target)} is neither a parameter nor a buffer of {type(self).__name__}")
        return value

    def named_non_persistent_buffers(
        self, recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields name and tensor of the buffers that are not saved."""
        for name, tensor in self.named_buffers(recurse=recurse, remove_duplicate=remove_duplicate):
            owner, _, buffer = name.rpartition(".")
            if buffer in self.get_submodule(owner)._non_persistent_buffers_set:
                yield name, tensor

    # ---- names

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Adds tags to those that `push_to_hub` writes into the model card."""
        if not isinstance(tags, str | list | tuple | set) or not all(isinstance(tag, str) for tag in tags):
            raise ArgumentError(f"tags is {show(tags)}; it must be a text or a list of texts")
        old = list(self.model_tags or [])
        self.model_tags = old + [tag for tag in ([tags] if isinstance(tags, str) else tags) if tag not in old]

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoModel") -> None:
        """Records the name of an Auto class in `_auto_class`; it changes nothing else.

        transformers would copy the source file of the class into saved folders.
        """
        if not isinstance(auto_class, str | type):
            raise ArgumentError(f"auto_class is {show(auto_class)}; it must be the name of an Auto class, or the class")
        cls._auto_class = auto_class if isinstance(auto_class, str) else auto_class.__name__

    @classmethod
    def is_remote_code(cls) -> bool:
        """Returns whether the class was passed to `register_for_auto_class`."""
        return cls._auto_class is not None

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns whether the class was defined outside puna."""
        return cls.is_remote_code() or not cls.__module__.startswith("puna.")


def _before_forward(module: nn.Module, inputs: Any) -> None:
    vars(module)["mem_rss_pre_forward"] = resident_memory()


def _after_forward(module: nn.Module, inputs: Any, output: Any) -> None:
    state = vars(module)
    state["mem_rss_post_forward"] = resident_memory()
    state["mem_rss_diff"] = (
        state.get("mem_rss_diff", 0) + state["mem_rss_post_forward"] - state.get("mem_rss_pre_forward", 0)
    )
