"""Recipes: the kind of tokenizer that a path contains, and the data from which a tokenizer class is built.

Nothing here creates a tokenizer: `LlamaTokenizer` and `LlamaTokenizerFast` have `from_recipe` for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from puna.errors import ModelNotFoundError, TokenizerError, show
from puna.files import group_parts, has_file, read_json, reading_errors
from puna.files.tokenizer_json import read_pipeline
from puna.formats.gguf import open_gguf
from puna.tokenizer.arguments import Arguments, Behaviour
from puna.tokenizer.files.byte_level import BOS, EOS, PAD, build, pre_tokenizer, read_tiktoken
from puna.tokenizer.files.config import OWN_IDS, read_folder
from puna.tokenizer.files.gguf import GgufVocabulary, merges, pre_name, read_vocabulary, sentencepiece_model
from puna.tokenizer.sentencepiece.proto import PieceType

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["json", "sentencepiece", "tiktoken", "gguf"]

_JSON, _MODEL = "tokenizer.json", "tokenizer.model"

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,7}\r?\n")
"""The first line of Llama 3's tiktoken file: a base64 token and its rank."""

_BOS_AND_EOS = (
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|im_start|>", "<|im_end|>"),
    ("<|endoftext|>", "<|endoftext|>"),
)
"""BOS and EOS of LLaMA models, for a tokenizer.json without configuration files, which would name them."""


_LLAMA_CLASSES = frozenset({"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"})
"""The classes that in transformers rebuild a pipeline's post-processor from add_bos_token and add_eos_token."""


@dataclass(frozen=True)
class Recipe:
    """The data of a tokenizer: a SentencePiece model for `LlamaTokenizer`, or a pipeline for `LlamaTokenizerFast`.

    Attributes:
        arguments: constructor arguments; the caller's arguments override the files.
        vocab_file: the path of a SentencePiece model.
        model_proto: the bytes of a SentencePiece model that is not a file.
        behaviour: the behaviour of `LlamaTokenizer`; if None, it follows from the argument `legacy`.
        pipeline: a pipeline of `tokenizers`.
        literal: whether the pipeline's own post-processor adds BOS and EOS.
        add_bos, add_eos: override the pipeline's own post-processor; None keeps it.
        notes: remarks on unusual files, for `puna inspect`.
    """

    arguments: Arguments
    vocab_file: Path | None = None
    model_proto: bytes | None = None
    behaviour: Behaviour | None = None
    pipeline: Tokenizer | None = None
    literal: bool = False
    add_bos: bool | None = None
    add_eos: bool | None = None
    notes: tuple[str, ...] = ()

    def with_other(self, arguments: Mapping[str, Any]) -> Recipe:
        """Returns the recipe with arguments that not every tokenizer has; they override the files.

        `save_pretrained` writes those that no tokenizer has, as in transformers.
        """
        other = {**self.arguments.get("other_config", {}), **arguments}
        return replace(self, arguments=self.arguments | Arguments(other_config=other))


@reading_errors(TokenizerError)
def default_recipe(path: Path, name: str, arguments: Arguments) -> Recipe:
    """Returns the recipe of `load_tokenizer`, which gives the ids that the model was trained with.

    Args:
        name: the path as the caller wrote it, for `name_or_path`.
    """
    file, kind = find(path)
    config, tokenizer_class = _folder_config(path)
    defaults = Arguments(name_or_path=name, use_default_system_prompt=False)
    all_arguments = Arguments(padding_side="left") | config | defaults | arguments
    if kind == "json":
        if config.get("other_config", {}).get(OWN_IDS) == "sp":
            all_arguments.setdefault("split_special_tokens", True)
        flags = config | arguments if tokenizer_class in _LLAMA_CLASSES else arguments
        return _literal(file, all_arguments, flags.get("add_bos_token"), flags.get("add_eos_token"))
    if kind == "tiktoken":
        return _tiktoken(file, all_arguments)
    all_arguments["legacy"] = arguments.get("legacy")
    behaviour: Behaviour | None = "sp" if arguments.get("legacy") is None else None
    if kind == "sentencepiece":
        return Recipe(all_arguments, file, behaviour=behaviour)
    vocabulary = _read_gguf(file)
    if vocabulary.model == "gpt2":
        return byte_level_recipe(vocabulary, all_arguments)
    return _gguf_sentencepiece(vocabulary, all_arguments, behaviour)


@reading_errors(TokenizerError)
def auto_recipe(path: Path, arguments: Arguments) -> Recipe:
    """Returns the recipe of `AutoTokenizer.from_pretrained`.

    A tokenizer.json of a class that is not LLaMA's is used unchanged and pads on the right, as in transformers;
    otherwise the recipe is that of `LlamaTokenizerFast.from_pretrained`.
    """
    file, kind = find(path)
    tokenizer_class = _folder_config(path)[1]
    if kind != "json" or tokenizer_class in ("", *_LLAMA_CLASSES):
        return pipeline_recipe(path, arguments)
    all_arguments = Arguments(padding_side="right") | _from_folder(path, arguments)
    return _literal(file, all_arguments, arguments.get("add_bos_token"), arguments.get("add_eos_token"))


def has_sentencepiece(path: Path) -> bool:
    """Whether `LlamaTokenizer.from_pretrained` can load the path."""
    file, kind = find(path, prefer=_MODEL)
    return kind == "sentencepiece" or (kind == "gguf" and _read_gguf(file).model == "llama")


@reading_errors(TokenizerError)
def sentencepiece_recipe(path: Path, arguments: Arguments) -> Recipe:
    """Returns the recipe of `LlamaTokenizer.from_pretrained`.

    Raises:
        TokenizerError: the path contains no SentencePiece vocabulary.
    """
    file, kind = find(path, prefer=_MODEL)
    all_arguments = _from_folder(path, arguments)
    if kind == "sentencepiece":
        return Recipe(all_arguments, file)
    if kind == "gguf":
        vocabulary = _read_gguf(file)
        if vocabulary.model == "llama":
            return _gguf_sentencepiece(vocabulary, all_arguments)
    raise TokenizerError(f"{file}: LlamaTokenizer needs a SentencePiece vocabulary; use AutoTokenizer for this file")


@reading_errors(TokenizerError)
def pipeline_recipe(path: Path, arguments: Arguments) -> Recipe:
    """Returns the recipe of `LlamaTokenizerFast.from_pretrained`, which reads every kind of file."""
    file, kind = find(path)
    all_arguments = _from_folder(path, arguments)
    if kind == "sentencepiece":
        from puna.tokenizer.sentencepiece.convert import convert_model
        from puna.tokenizer.sentencepiece.engine import read_model

        return Recipe(all_arguments, file, pipeline=convert_model(read_model(file), str(file)))
    if kind == "tiktoken":
        return _tiktoken(file, all_arguments)
    if kind == "gguf":
        vocabulary = _read_gguf(file)
        if vocabulary.model == "gpt2":
            return byte_level_recipe(vocabulary, all_arguments)
        from puna.tokenizer.sentencepiece.convert import convert_model

        pipeline = convert_model(sentencepiece_model(vocabulary), str(file))
        return Recipe(_gguf_arguments(vocabulary, all_arguments), pipeline=pipeline)
    pipeline, notes = read_pipeline(file)
    defaults = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if any(pipeline.token_to_id(t) is None for name, t in defaults.items() if name not in all_arguments):
        # The constructor would add its default tokens, with new ids, to this vocabulary.
        return _literal(file, all_arguments, parsed=(pipeline, notes))
    model = file.with_name(_MODEL)
    vocab_file = model if has_file(model, TokenizerError) and sniff(model) == "sentencepiece" else None
    return Recipe(all_arguments, vocab_file, pipeline=pipeline, notes=tuple(notes))


def is_code_llama(path: Path) -> bool:
    """Whether a folder's configuration names Code Llama's tokenizer."""
    return _folder_config(path)[1].removesuffix("Fast") == "CodeLlamaTokenizer"


def find(path: Path, prefer: str = _JSON) -> tuple[Path, Kind]:
    """Returns the tokenizer file of a path, and its kind.

    Args:
        prefer: the file name to use if a folder has both tokenizer.json and tokenizer.model.
    """
    if path.is_file():
        return path, sniff(path)
    if not path.is_dir():
        has_file(path, TokenizerError)  # raises for a device or a link to nothing
        raise ModelNotFoundError(
            f"{path}: no such folder or file; give a local path, or owner/name on the Hugging Face hub"
        )
    for name in sorted((_JSON, _MODEL), key=lambda name: name != prefer):
        if has_file(path / name, TokenizerError):
            return path / name, sniff(path / name)
    models = group_parts(file.name for file in path.glob("*.gguf"))
    if len(models) != 1:
        raise TokenizerError(
            f"{path}: the folder contains {len(models)} GGUF files, no {_JSON} and no {_MODEL}; give the path of "
            "one of the files"
            if models
            else f"{path}: the folder has no tokenizer ({_JSON}, {_MODEL} or a GGUF file); add the tokenizer's files"
        )
    file = path / models[0][0]
    return file, sniff(file)


def sniff(path: Path) -> Kind:
    """Returns the kind of a tokenizer file, by its first bytes.

    Raises:
        TokenizerError: the file is not a tokenizer.
    """
    with reading_errors(TokenizerError), path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return "json"
    if _TIKTOKEN_LINE.match(head):
        return "tiktoken"
    if head.startswith(b"\n"):  # field 1 of a protobuf message: the first piece
        return "sentencepiece"
    start = f"begins with {show(head[:16])}" if head else "is empty"
    raise TokenizerError(
        f"{path} {start}, so it is neither tokenizer.json, a SentencePiece model, Llama 3's "
        "tiktoken file nor GGUF; download the file again"
    )


def _folder_config(path: Path) -> tuple[Arguments, str]:
    """Returns the arguments in a folder's configuration files, and the class that they name; both empty for a file."""
    return read_folder(path) if path.is_dir() else (Arguments(), "")


def _from_folder(path: Path, arguments: Arguments) -> Arguments:
    return _folder_config(path)[0] | Arguments(name_or_path=str(path)) | arguments


def _literal(
    file: Path,
    arguments: Arguments,
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    parsed: tuple[Tokenizer, list[str]] | None = None,
) -> Recipe:
    """Returns the recipe of an unchanged tokenizer.json.

    Args:
        parsed: the pipeline and the notes of the file, if it has been read already.
    """
    pipeline, notes = parsed or read_pipeline(file)
    guesses = _guess_bos_and_eos(pipeline, file.with_name("config.json"))
    return Recipe(
        guesses | arguments, pipeline=pipeline, literal=True, add_bos=add_bos, add_eos=add_eos, notes=tuple(notes)
    )


def _guess_bos_and_eos(pipeline: Tokenizer, config_file: Path) -> Arguments:
    """Returns BOS and EOS, from the ids in config.json or by the names in `_BOS_AND_EOS`, without an unknown token."""
    config = read_json(config_file, TokenizerError) if has_file(config_file, TokenizerError) else {}
    special = {token.content for token in pipeline.get_added_tokens_decoder().values() if token.special}
    bos, eos = next((pair for pair in _BOS_AND_EOS if special.issuperset(pair)), (None, None))
    return Arguments(
        unk_token=None,
        bos_token=_token(pipeline, config.get("bos_token_id")) or bos,
        eos_token=_token(pipeline, config.get("eos_token_id")) or eos,
    )


def _token(pipeline: Tokenizer, index: object) -> str | None:
    first = index[0] if isinstance(index, list) and index else index
    return pipeline.id_to_token(first) if isinstance(first, int) and 0 <= first < 2**32 else None


def _tiktoken(file: Path, arguments: Arguments) -> Recipe:
    """Returns the recipe of Llama 3's tiktoken file. By default BOS is added, as in Meta's code."""
    return Recipe(
        Arguments(unk_token=None, bos_token=BOS, eos_token=EOS, pad_token=PAD) | arguments,
        pipeline=read_tiktoken(file),
        literal=True,
        add_bos=arguments.get("add_bos_token", True),
        add_eos=arguments.get("add_eos_token"),
    )


def _read_gguf(file: Path) -> GgufVocabulary:
    """Reads the vocabulary of a GGUF file.

    Raises:
        TokenizerError: the file has no vocabulary, or a damaged vocabulary.
        CheckpointError: the file itself is damaged.
    """
    try:
        return read_vocabulary(open_gguf(file).metadata)
    except TokenizerError as exc:
        raise TokenizerError(f"{file}: {exc}") from exc


def _gguf_arguments(vocabulary: GgufVocabulary, arguments: Arguments) -> Arguments:
    """Returns the settings in the metadata, overridden by `arguments`."""
    settings = Arguments(
        unk_token=vocabulary.token("unk"),
        bos_token=vocabulary.token("bos"),
        eos_token=vocabulary.token("eos"),
        pad_token=vocabulary.token("pad"),
        add_bos_token=vocabulary.flag("add_bos_token", True) and "bos" in vocabulary.ids,
        add_eos_token=vocabulary.flag("add_eos_token", False) and "eos" in vocabulary.ids,
    )
    templates = vocabulary.templates
    if templates:
        settings["chat_template"] = templates["default"] if list(templates) == ["default"] else templates
    return settings | arguments


def _gguf_sentencepiece(vocabulary: GgufVocabulary, arguments: Arguments, behaviour: Behaviour | None = None) -> Recipe:
    model = sentencepiece_model(vocabulary)
    return Recipe(_gguf_arguments(vocabulary, arguments), model_proto=model, behaviour=behaviour)


def byte_level_recipe(vocabulary: GgufVocabulary, arguments: Arguments) -> Recipe:
    """Returns the recipe of a "gpt2" vocabulary: control tokens become special, user-defined tokens added ones."""
    from tokenizers import AddedToken

    rules = pre_tokenizer(pre_name(vocabulary))
    vocab = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
    if len(vocab) != len(vocabulary.tokens):
        raise TokenizerError(
            f"tokenizer.ggml.tokens: {len(vocab)} of {len(vocabulary.tokens)} are distinct; download the file again"
        )
    normal = int(PieceType.NORMAL)  # nearly all tokens have this type, and comparing with an enumeration is slow
    special = (PieceType.CONTROL, PieceType.UNKNOWN)
    added = [
        AddedToken(token, normalized=False, special=kind in special)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind != normal and kind in (*special, PieceType.USER_DEFINED)
    ]
    named = _gguf_arguments(vocabulary, arguments)
    adds_bos = vocabulary.flag("add_bos_token", rules.adds_bos) and "bos" in vocabulary.ids
    return Recipe(
        named,
        pipeline=build(vocab, merges(vocabulary), rules, added),
        literal=True,
        add_bos=arguments.get("add_bos_token", adds_bos),
        add_eos=named.get("add_eos_token"),
    )
