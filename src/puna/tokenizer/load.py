"""Finding out what kind of tokenizer a path holds, by content and not by name, and loading it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from puna.errors import ModelNotFoundError, TokenizerError
from puna.hub import local_path

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from puna.tokenizer.arguments import Arguments, FromPretrained
    from puna.tokenizer.fast import LlamaTokenizerFast
    from puna.tokenizer.slow import LlamaTokenizer

Kind = Literal["json", "sentencepiece", "tiktoken", "gguf"]

_JSON, _MODEL = "tokenizer.json", "tokenizer.model"

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,7}\r?\n")
"""The first line of Llama 3's ranks: a base64 token and its rank."""


def load_tokenizer(path: str | Path, **arguments: Unpack[Arguments]) -> LlamaTokenizer | LlamaTokenizerFast:
    """Loads the tokenizer of a folder or file, whatever its kind.

    tokenizer.json is executed literally, whatever class its configuration names; Llama 3's ranks and both kinds of
    GGUF vocabulary give their models' ids. A SentencePiece model gives SentencePiece's own ids, so that special tokens
    written in a text, such as </s>, stay text; with `split_special_tokens=False` they are tokens, as in transformers.
    No system prompt is put into a chat that has none, and padding goes to the left, as generation needs it.

    Args:
        path: a folder with tokenizer.json, tokenizer.model or one GGUF file, such a file itself, or a model of the
            hub (owner/name), whose tokenizer is downloaded.
        arguments: constructor arguments, which win over what the files say. `legacy` chooses the behaviour of
            transformers for a SentencePiece model.

    Raises:
        ModelNotFoundError: there is no such folder or file.
        TokenizerError: nothing in it is a tokenizer, a file is damaged, or an argument is unknown.
    """
    from puna.tokenizer.arguments import Arguments, checked, merged
    from puna.tokenizer.files import recipes
    from puna.tokenizer.files.config import OWN_IDS

    arguments = checked(arguments)
    where = local_path(path, "tokenizer")
    file, kind = find(where)
    config, tokenizer_class = recipes.folder_arguments(where)
    ours = Arguments(name_or_path=str(path), use_default_system_prompt=False)
    given = merged(Arguments(padding_side="left"), config, ours, arguments)
    if kind == "json":
        if config.get("other_config", {}).get(OWN_IDS) == "sp":
            given.setdefault("split_special_tokens", True)
        honoured = merged(config if recipes.is_llama_class(tokenizer_class) else Arguments(), arguments)
        return recipes.literal_json(file, given, honoured.get("add_bos_token"), honoured.get("add_eos_token"))
    if kind == "tiktoken":
        return recipes.tiktoken(file, given)
    given["legacy"] = arguments.get("legacy")
    if kind == "sentencepiece":
        return recipes.own_sentencepiece(file, given)
    return recipes.gguf(file, given)


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained`, for code that is written so."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path, *, use_fast: bool = True, **arguments: Unpack[FromPretrained]
    ) -> LlamaTokenizer | LlamaTokenizerFast:
        """The same as `load_tokenizer`; with `use_fast` False, the page's `LlamaTokenizer`.

        The arguments of transformers that tell how to fetch from its hub mean the same here; without effect on a local
        path.
        """
        from puna.tokenizer.arguments import local

        if use_fast:
            path, given = local(pretrained_model_name_or_path, arguments)
            return load_tokenizer(path, **given)
        from puna.tokenizer.slow import LlamaTokenizer

        return LlamaTokenizer.from_pretrained(pretrained_model_name_or_path, **arguments)


def find(path: Path, prefer: str = _JSON) -> tuple[Path, Kind]:
    """The tokenizer file of a path, and its kind.

    Args:
        prefer: the file name that wins where a folder has both tokenizer.json and tokenizer.model.
    """
    if path.is_file():
        return path, sniff(path)
    if not path.is_dir():
        raise ModelNotFoundError(
            f"{path}: no such folder or file; give a local path, or owner/name of the Hugging Face hub"
        )
    for name in sorted((_JSON, _MODEL), key=lambda name: name != prefer):
        if (path / name).is_file():
            return path / name, sniff(path / name)
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise TokenizerError(
            f"{path}: {len(files)} GGUF files and neither {_JSON} nor {_MODEL}; "
            + ("name one of the files" if files else "put the tokenizer's files into the folder")
        )
    return files[0], sniff(files[0])


def sniff(path: Path) -> Kind:
    """The kind of a tokenizer file, from its first bytes.

    Raises:
        TokenizerError: it is none.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return "json"
    if _TIKTOKEN_LINE.match(head):
        return "tiktoken"
    if head.startswith(b"\n"):  # field 1 of a protobuf message: the first piece
        return "sentencepiece"
    raise TokenizerError(
        f"{path}: begins with {head[:16]!r}, so it is neither tokenizer.json, a SentencePiece model, Llama 3's ranks "
        "nor GGUF; download the file again"
    )
