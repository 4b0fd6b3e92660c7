"""The conversion command of Hugging Face's LLaMA documentation, with the same arguments:

    python -m puna.convert_llama_weights_to_hf --input_dir /downloaded/llama --model_size 7B --output_dir /output

It does the same as `puna convert INPUT OUTPUT --to hf`. The files determine the sizes of the model: `--model_size` only
chooses one of several models in a folder; the value `tokenizer_only` skips the weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from puna.checkpoint.meta_params import RELEASES
from puna.errors import CheckpointError, ModelNotFoundError, PunaError, RequestError

_SIZES = ("7B", "7Bf", "8B", "8Bf", "1B", "3B", "13B", "13Bf", "30B", "34B", "65B", "70B", "70Bf", "405B", "405B-MP16",
          "tokenizer_only")  # fmt: skip

_GUARD = "Guard-3"
"""The release of Llama Guard 3, fine-tuned from Llama 3.1 or (1B) 3.2; puna infers which from the parameters."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = _parser()
    try:
        _run(parser.parse_args(arguments))
    except PunaError as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; repeat the command to resume", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_llama_weights_to_hf", description="Convert Meta's LLaMA files to a Hugging Face folder."
    )
    add = parser.add_argument
    add("--input_dir", type=Path, required=True, help="folder of Meta's files, or with one such folder per size")
    add("--model_size", choices=_SIZES, help="model to convert if input_dir has several; tokenizer_only: no weights")
    add("--output_dir", type=Path, required=True, help="new folder for the model and tokenizer")
    add("--llama_version", choices=(*RELEASES, _GUARD), help="release, which sets the context [default: inferred]")
    add("--num_shards", type=int, help="expected number of shards [default: any]")
    add("--safe_serialization", type=_flag, default=True, nargs="?", const=True, help="must be true: safetensors")
    add("--instruct", type=_flag, default=False, nargs="?", const=True, help="add Llama 3's chat template")
    add("--special_tokens", nargs="*", help="not supported: the tokenizer keeps its special tokens")
    add(
        "--push_to_hub", type=_flag, default=False, nargs="?", const=True, help="not supported: upload with `hf upload`"
    )
    return parser


def _flag(text: str) -> bool:
    """Parses "true", "false" and similar words: `bool("False")`, as in Hugging Face's script, would be true."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def _run(options: argparse.Namespace) -> None:
    from puna.checkpoint.meta import find_shards
    from puna.convert import convert, convert_tokenizer

    for is_unsupported, name, remedy in (
        (not options.safe_serialization, "--safe_serialization false", "puna writes safetensors; omit the option"),
        (options.push_to_hub, "--push_to_hub", "upload the folder with `hf upload`"),
        (options.special_tokens, "--special_tokens", "the tokenizer keeps its special tokens; omit the option"),
    ):
        if is_unsupported:
            raise RequestError(f"{name} is not supported: {remedy}")
    if options.model_size == "tokenizer_only":
        notes = convert_tokenizer(options.input_dir, options.output_dir, "hf", instruct=options.instruct)
    else:
        folder = _folder(options.input_dir, options.model_size)
        shards = len(find_shards(folder))
        if options.num_shards is not None and options.num_shards != shards:
            raise CheckpointError(f"{folder}: {shards} shards, but --num_shards is {options.num_shards}")
        notes = convert(
            folder,
            options.output_dir,
            to="hf",
            llama_version=None if options.llama_version == _GUARD else options.llama_version,
            instruct=options.instruct,
        ).notes
    for note in notes:
        print(f"note: {note}", file=sys.stderr)  # noqa: T201
    print(f"written to {options.output_dir}")  # noqa: T201


def _folder(input_dir: Path, size: str | None) -> Path:
    """Returns the model's folder: `input_dir`, or its subfolder `size`."""
    if (input_dir / "params.json").exists():
        return input_dir
    if size is not None and (input_dir / size / "params.json").exists():
        return input_dir / size
    inside = sorted(path.parent.name for path in input_dir.glob("*/params.json")) if input_dir.is_dir() else []
    remedy = f". The folder has {', '.join(inside)}: choose one with --model_size" if inside else ""
    raise ModelNotFoundError(f"{input_dir}: no params.json{'' if size is None else f', nor in {size}'}{remedy}")


if __name__ == "__main__":
    sys.exit(main())
