"""`open_adapter`: reads an adapter from a PEFT folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from puna.adapters.adapter import Adapter
from puna.adapters.gguf_file import open_gguf_adapter
from puna.adapters.peft_config import CONFIG
from puna.adapters.peft_folder import open_peft_folder
from puna.config import LlamaConfig
from puna.errors import CheckpointError, ModelNotFoundError, show
from puna.files import has_file, reading_errors
from puna.formats.gguf import open_gguf
from puna.formats.mapped import sniff


@reading_errors(CheckpointError)
def open_adapter(path: str | Path, config: LlamaConfig) -> Adapter:
    """Reads an adapter for a model with the given configuration, and checks that it is complete and fits the model.

    Args:
        path: a folder with adapter_config.json, or a GGUF file or a folder with one.
        config: the configuration of the base model.

    Raises:
        ModelNotFoundError: there is no adapter at `path`.
        CheckpointError: the files are damaged or incomplete, belong to another model, or have settings that puna does
            not apply.
    """
    if not isinstance(path, str | Path):
        raise ModelNotFoundError(f"the path of an adapter is {show(path)}; it must be a text or a Path")
    if path == "":
        raise ModelNotFoundError("the path of an adapter is empty; give the folder of an adapter or a GGUF file")
    path = Path(path)
    if path.is_dir():
        if has_file(path / CONFIG, CheckpointError):
            return open_peft_folder(path, config)
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise ModelNotFoundError(
                f"{path}: contains neither {CONFIG} nor a single .gguf file; give the folder of an adapter"
            )
        path = files[0]
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such file or folder; give the folder of an adapter or a GGUF file")
    kind = sniff(path)
    if kind != "gguf":
        raise CheckpointError(f"{path}: a single {kind} file lacks the adapter's settings; give its folder")
    return open_gguf_adapter(open_gguf(path), config)
