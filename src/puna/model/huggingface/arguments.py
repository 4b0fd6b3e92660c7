"""The keyword arguments of `PreTrainedModel.from_pretrained` that puna ignores or refuses, by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.errors import RequestError, show
from puna.hub import parse

_NO_EFFECT = {
    "low_cpu_mem_usage", "_fast_init", "mirror", "resume_download", "offload_state_dict", "weights_only",
    "disable_mmap", "tqdm_class", "_from_auto", "_from_pipeline", "_commit_hash", "adapter_name",
    "trust_remote_code", "code_revision", "user_agent",
}  # fmt: skip
"""Ignored: weights are never in memory twice, nothing is unpickled, no code is downloaded, downloads resume."""

_QUANTISED = (
    "quantise the model once with `puna convert --quantize` and load the file with keep_quantized=True; a checkpoint "
    "that is quantised already needs no argument"
)
_SHARDED = "apply PyTorch's fully_shard or parallelize_module to the model, or use device_map"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "from_tf": ((False, None), "load the model with transformers 4.34 and save it as safetensors"),
    "from_flax": ((False, None), "load the model with transformers 4.34 and save it as safetensors"),
    "load_in_8bit": ((False, None), _QUANTISED),
    "load_in_4bit": ((False, None), _QUANTISED),
    "quantization_config": ((None,), _QUANTISED),
    "use_flash_attention_2": ((False, None), "PyTorch's flash kernels are part of attn_implementation='sdpa'"),
    "experts_implementation": ((None,), "LLaMA has no experts"),
    "use_kernels": ((False, None), "puna uses PyTorch's kernels"),
    "kernel_config": ((None,), "puna uses PyTorch's kernels"),
    "allow_all_kernels": ((False, None), "puna uses PyTorch's kernels"),
    "fusion_config": ((None,), "puna fuses no layers"),
    "tp_plan": ((None,), _SHARDED),
    "tp_size": ((None,), _SHARDED),
    "device_mesh": ((None,), _SHARDED),
    "distributed_config": ((None,), _SHARDED),
    "adapter_kwargs": ((None, {}), "load the base model, then the adapter with PeftModel.from_pretrained"),
}
"""For each argument the values that change nothing, and the remedy for other values."""


def remaining_arguments(path: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that are neither ignored nor refused here.

    Args:
        path: the first argument of `from_pretrained`.
        arguments: keyword arguments.

    Raises:
        RequestError: an argument has a value that puna does not support; the message contains the remedy.
    """
    for name, (accepted, remedy) in _REFUSED.items():
        value = arguments.get(name)
        if value not in accepted:
            raise RequestError(f"{name} is {show(value)}, which puna does not support: {remedy}")
    if arguments.get("proxies") and isinstance(path, str | Path) and parse(path) is not None:
        raise RequestError("proxies cannot be passed; set the environment variables HTTP_PROXY and HTTPS_PROXY instead")
    if arguments.get("trust_remote_code"):
        warnings.warn("trust_remote_code has no effect: puna downloads no code", stacklevel=3)
    ignored = _NO_EFFECT | _REFUSED.keys() | {"proxies"}
    return {name: value for name, value in arguments.items() if name not in ignored}
