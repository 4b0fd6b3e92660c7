"""The conversion command of Hugging Face's LLaMA page, with its arguments:

    python -m puna.convert_llama_weights_to_hf --input_dir /downloaded/llama --model_size 7B --output_dir /output

The same as `puna convert INPUT OUTPUT --to hf`, in memory bounded by pieces of tensors. What the weights are is found
from the files; `--model_size` chooses among several models in one folder, and `tokenizer_only` leaves weights out.
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
"""Llama Guard 3, fine-tuned from Llama 3.1 and, its 1B, from 3.2: the parameters show which."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except PunaError as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; repeat the command to go on", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_llama_weights_to_hf", description="Meta's LLaMA files as a Hugging Face folder."
    )
    add = parser.add_argument
    add("--input_dir", type=Path, required=True, help="folder of Meta's files, or of one folder per size")
    add("--model_size", choices=_SIZES, help="which model of several in input_dir; tokenizer_only converts no weights")
    add("--output_dir", type=Path, required=True, help="new folder to write the model and tokenizer to")
    add("--llama_version", choices=(*RELEASES, _GUARD), help="release, which gives the context [default: found]")
    add("--num_shards", type=int, help="shards the model must have; found from the files if left out")
    add("--safe_serialization", type=_flag, default=True, nargs="?", const=True, help="must be true: safetensors")
    add("--instruct", type=_flag, default=False, nargs="?", const=True, help="add Llama 3's chat template")
    add("--special_tokens", nargs="*", help="not supported: the tokenizer's own special tokens are kept")
    add("--push_to_hub", type=_flag, default=False, nargs="?", const=True, help="not supported: files are local")
    return parser


def _flag(text: str) -> bool:
    """True or false in words: `bool("False")`, which the page's script takes, is true."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def _run(given: argparse.Namespace) -> None:
    from puna.checkpoint.meta import find_shards
    from puna.convert import convert, convert_tokenizer

    for refused, name, remedy in (
        (not given.safe_serialization, "--safe_serialization false", "files are always safetensors; leave it out"),
        (given.push_to_hub, "--push_to_hub", "upload the folder with `hf upload`"),
        (given.special_tokens, "--special_tokens", "the tokenizer's own are kept; leave it out"),
    ):
        if refused:
            raise RequestError(f"{name} is not supported: {remedy}")
    if given.model_size == "tokenizer_only":
        notes = convert_tokenizer(given.input_dir, given.output_dir, "hf", instruct=given.instruct)
    else:
        folder = _folder(given.input_dir, given.model_size)
        shards = len(find_shards(folder))
        if given.num_shards is not None and given.num_shards != shards:
            raise CheckpointError(f"{folder}: {shards} shards; --num_shards says {given.num_shards}")
        notes = convert(
            folder,
            given.output_dir,
            to="hf",
            llama_version=None if given.llama_version == _GUARD else given.llama_version,
            instruct=given.instruct,
        ).notes
    for note in notes:
        print(f"note: {note}", file=sys.stderr)  # noqa: T201
    print(f"written to {given.output_dir}")  # noqa: T201


def _folder(input_dir: Path, size: str | None) -> Path:
    """The folder of the model: the given one, or that of its size inside."""
    if (input_dir / "params.json").exists():
        return input_dir
    if size is not None and (input_dir / size / "params.json").exists():
        return input_dir / size
    inside = sorted(path.parent.name for path in input_dir.glob("*/params.json")) if input_dir.is_dir() else []
    found = f"; it has {', '.join(inside)}: name one with --model_size" if inside else ""
    raise ModelNotFoundError(f"{input_dir}: no params.json there{'' if size is None else f' or in {size}'}{found}")


if __name__ == "__main__":
    sys.exit(main())
