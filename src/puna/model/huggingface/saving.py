"""`save_pretrained` and `push_to_hub`, with the arguments of transformers 4.34 to 5.x."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import ArgumentError, RequestError, StorageError, show
from puna.files import folder_path
from puna.formats.new_tensor import NewTensor
from puna.hub.upload import upload_arguments, upload_files
from puna.model.huggingface.adapters import has_adapters, save_active_adapter
from puna.model.huggingface.information import Information
from puna.model.huggingface.tensors import tensor_bytes, tensor_description
from puna.model.quantized import PackedMatrix
from puna.saving import PYTORCH, SAFETENSORS, WeightFiles, new_tensor, save_checkpoint, split_into_shards

SaveFunction = Callable[[dict[str, Tensor], Path], Any]


class Saving(Information):
    """Methods that write a model."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        save_function: SaveFunction = torch.save,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        **options: Any,
    ) -> None:
        """Writes config.json, generation_config.json (for a language model) and model.safetensors, atomically.

        A tied head is omitted. Packed matrices cannot be saved: call `dequantize()` first, or convert the file that
        they came from. `config.architectures` and `config.dtype` are set, as in transformers.

        Args:
            save_directory: created if needed.
            is_main_process: False writes nothing; set it in all but one process of a distributed training. With
                `safe_serialization=False`, `save_function` is called anyway, on files that are deleted again, because
                the functions of some frameworks need all processes.
            state_dict: tensors to write instead of the model's own.
            save_function: called with a dictionary of tensors and a path if `safe_serialization` is False.
            push_to_hub: also upload the files, to `repo_id`, by default the name of the folder.
            max_shard_size: bytes or a string such as "2GB"; larger models are split into several files with an index.
            safe_serialization: False writes pytorch_model.bin, and removes safetensors files that an earlier save left
                in the folder, because every program would prefer them. True is the default of transformers since 4.35.
            variant: written into the names of the weight files: model.VARIANT.safetensors.
            token: overrides HF_TOKEN for `push_to_hub`.
            save_peft_format: if the model has adapters (`add_adapter`), only the active one is written, with names that
                PEFT requires; False leaves out their prefix.
            options: `repo_id`, `commit_message`, `private`, `create_pr`, `revision`, ... of `push_to_hub`;
                `use_auth_token`, the older name of `token`; `save_config`, the older name of `is_main_process`.

        Raises:
            RequestError: if matrices are packed; the configuration ties head and embeddings but they are two matrices,
                one of which would be lost; or the weights are on the meta device.
            CheckpointError: if the weights have a type that the files cannot hold.
            ConfigError: if the configuration cannot be written as JSON.
            OSError: if the disk is full or cannot be written; an earlier save in the folder is unchanged.
            ArgumentError: if an argument is unknown.
        """
        options = dict(options)
        if options.pop("distributed_checkpoint", False):
            raise RequestError(
                "distributed_checkpoint is True, which puna does not support; use torch.distributed.checkpoint"
            )
        is_main_process = options.pop("save_config", is_main_process)
        upload = upload_arguments({**options, "token": token}, inspect.signature(self.save_pretrained).parameters)
        if folder_path(save_directory).is_file():
            raise StorageError(f"{save_directory} cannot be written: it is a file, and save_directory must be a folder")
        if has_adapters(self):
            if is_main_process:
                written = save_active_adapter(self, save_directory, save_peft_format, safe_serialization)
                self._push(push_to_hub, save_directory, written, upload)
            return
        tensors = self._tensors_to_save(state_dict)
        files = (SAFETENSORS if safe_serialization else PYTORCH).with_variant(variant)
        write = None if safe_serialization else partial(_write_torch, tensors, save_function)
        if not is_main_process:
            if write is not None:
                _write_and_discard(tensors, files, max_shard_size, write)
            return
        self.config.dtype = self.dtype
        self.config.architectures = [type(self).__name__.removeprefix("FSDP")]
        fields = {key: value for key, value in self.config.to_dict().items() if key != "attn_implementation"}
        config = LlamaConfig.from_dict(fields)
        new = [(name, *tensor_description(tensor), partial(tensor_bytes, tensor)) for name, tensor in tensors.items()]
        generation = self.generation_config if self.can_generate() else None
        names = save_checkpoint(save_directory, config, new, generation, max_shard_size, files, write)
        self._push(push_to_hub, save_directory, names, upload)

    def _push(self, requested: bool, folder: str | Path, files: Sequence[Path], upload: dict[str, Any]) -> Any:
        """Uploads the files of a save if that was requested; returns the CommitInfo."""
        if not requested:
            return None
        tags = upload.get("tags", ())
        tags = dict.fromkeys([*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags)])
        arguments = {"repo_id": Path(folder).resolve().name, **upload, "tags": list(tags)}
        return upload_files(folder, [path.name for path in files], **arguments)

    def push_to_hub(
        self,
        repo_id: str,
        use_temp_dir: bool | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        max_shard_size: int | str | None = "5GB",
        create_pr: bool = False,
        safe_serialization: bool = True,
        revision: str | None = None,
        commit_description: str | None = None,
        tags: Sequence[str] | str | None = None,
        **options: Any,
    ) -> Any:
        """Saves the model into a temporary folder and uploads it to the hub as one commit; returns the CommitInfo.

        Args:
            repo_id: owner/name, or a name in the user's namespace; created if needed.
            use_temp_dir: has no effect.
            commit_message, commit_description: texts of the commit.
            private: whether a new repository is private.
            token: overrides HF_TOKEN; `use_auth_token` is the older name.
            max_shard_size, safe_serialization: as in `save_pretrained`.
            create_pr: open a pull request instead of a commit.
            revision: the branch.
            tags: tags of the model card, in addition to those of `add_model_tags`.
            options: `organization`, the owner of the repository, of older releases.

        Raises:
            RequestError: the hub refused the upload.
            StorageError: the hub cannot be reached.
        """
        upload = upload_arguments(
            {
                **options, "repo_id": repo_id, "commit_message": commit_message, "private": private, "token": token,
                "create_pr": create_pr, "revision": revision, "commit_description": commit_description, "tags": tags,
            }
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size or "5GB", safe_serialization=safe_serialization)
            return self._push(True, folder, sorted(Path(folder).iterdir()), upload)

    def _tensors_to_save(self, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Returns the tensors by their names in the files, without a tied head."""
        if packed := sum(isinstance(module, PackedMatrix) for module in self.modules()):
            raise RequestError(
                f"{packed} matrices of the model are packed, and the files hold float numbers; call dequantize() "
                "first, or convert the file that they came from (puna convert)"
            )
        if state_dict is not None and (
            not isinstance(state_dict, Mapping) or not all(isinstance(each, Tensor) for each in state_dict.values())
        ):
            raise ArgumentError(f"state_dict is {show(state_dict)}; it must be a dictionary of tensors")
        tensors = dict(self.state_dict() if state_dict is None else state_dict)
        ignored = self._keys_to_ignore_on_save or ()
        tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
        if any(tensor.is_meta for tensor in tensors.values()):
            tensors = self._offloaded_tensors(tensors)
        if self.config.tie_word_embeddings and self.can_generate():
            head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
            if head is not None and embedding is not None and not _share_values(head, embedding):
                raise RequestError(
                    "config.tie_word_embeddings is True, but the head is a separate matrix; call tie_weights(), or set "
                    "config.tie_word_embeddings to False"
                )
            tensors.pop("lm_head.weight", None)
        return tensors

    def _offloaded_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors with the values of those that accelerate keeps on the disk or the CPU."""
        if getattr(self, "hf_device_map", None) is None:
            raise RequestError("the weights are on the meta device and have no values; load or initialise them first")
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        warnings.warn(
            "the model has modules on the disk or the CPU; saving loads all of them into memory", stacklevel=4
        )
        loaded: dict[str, Tensor] = get_state_dict_offloaded_model(self)
        return {name: loaded.get(name, tensor) for name, tensor in tensors.items()}


def _share_values(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or (one.shape == other.shape and torch.equal(one, other))


def _write_torch(tensors: Mapping[str, Tensor], save: SaveFunction, path: Path, shard: Sequence[NewTensor]) -> None:
    """Writes one file with `torch.save` or the user's function."""
    try:
        save({item.name: tensors[item.name].detach().contiguous() for item in shard}, path)
    except RuntimeError as exc:
        # torch.save does not raise OSError if the disk is full: its zip writer reports the position of the file
        if "inline_container" not in str(exc) and "PytorchStreamWriter" not in str(exc):
            raise
        raise StorageError(
            f"{path.name} cannot be written ({exc}); the previous content is unchanged. Free space, or choose another "
            "folder"
        ) from exc


def _write_and_discard(
    tensors: Mapping[str, Tensor],
    files: WeightFiles,
    max_shard_size: int | str,
    write: Callable[[Path, Sequence[NewTensor]], None],
) -> None:
    new = [
        new_tensor(name, *tensor_description(tensor), partial(tensor_bytes, tensor)) for name, tensor in tensors.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, shard in split_into_shards(new, max_shard_size, files=files).items():
            write(Path(folder) / name, shard)
